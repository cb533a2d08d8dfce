#!/bin/bash
# Registers from the shells: bash and dash, echo and printf, > and >>. $1: a mountpoint with registers.
set -euo pipefail
cd "$1"
regs=vcpu/0/regs
expect() {
    [ "$1" = "$2" ] || { echo "$3: '$1', expected '$2'" >&2; exit 1; }
}

echo pause > ctl
before=$(cat $regs/all)

for shell in bash dash; do
    $shell -c "echo 'rax=0x1 rbx=2' > $regs/all"
    expect "$(cat $regs/rax) $(cat $regs/rbx)" '0x0000000000000001 0x0000000000000002' "$shell echo"
    $shell -c "echo 'rax=3   # a comment' >> $regs/all"
    expect "$(cat $regs/rax)" 0x0000000000000003 "$shell >>"
    $shell -c "printf 'rcx=%d' 4 > $regs/all; printf 0b101 > $regs/rdx"
    expect "$(grep -E '^r[cd]x=' $regs/all)" $'rcx=0x0000000000000004\nrdx=0x0000000000000005' "$shell printf"
done

# Several lines in one write are one change; dash's echo and cat write them so.
printf 'r8=8\nr9=9\n' | dd of=$regs/all bs=4096 iflag=fullblock status=none
expect "$(cat $regs/r8 $regs/r9 | tr '\n' ' ')" '0x0000000000000008 0x0000000000000009 ' 'two lines'

echo 'base=0x1000 limit=0x7f' > $regs/gdtr
expect "$(cat $regs/gdtr)" 'base=0x0000000000001000 limit=0x007f' gdtr

# All at one instant, put back as it was read.
size=$(stat -c %s $regs/all)
expect "$(wc -c < $regs/all)" "$size" 'size of all'
cp $regs/raw /dev/stdout | xxd -l 8 | grep -q VMTREGS
printf '%s\n' "$before" | grep -v -E '^tsc=' | dd of=$regs/all bs=65536 iflag=fullblock status=none
expect "$(grep -v '^tsc=' $regs/all)" "$(printf '%s\n' "$before" | grep -v '^tsc=')" 'put back'
echo resume > ctl
