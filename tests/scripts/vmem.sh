#!/bin/sh
# Virtual memory through a vCPU's page tables, and where an address lies. $1: the mountpoint of emu:ram=64M.
set -eu
cd "$1"
echo pause > ctl
rip=$(cat vcpu/0/regs/rip)
line=$(cat "vcpu/0/translate,gva=$rip")
gpa=$(echo "$line" | sed -n 's/.* gpa=\(0x[0-9a-f]*\) .*/\1/p')
[ -n "$gpa" ] || { echo "translate: $line" >&2; exit 1; }

# The instruction at rip, by both ways.
virtual=$(dd if=vcpu/0/vmem bs=16 count=1 skip=$((rip)) iflag=skip_bytes status=none | xxd -p)
physical=$(dd if=mem bs=16 count=1 skip=$((gpa)) iflag=skip_bytes status=none | xxd -p)
[ "$virtual" = "$physical" ] || { echo "rip: $virtual, gpa: $physical" >&2; exit 1; }

# The kernel's stack, written by vmem and read by mem.
at=$((0x100800ff8))
printf 'across a page' | dd of=vcpu/0/vmem bs=16 seek=$at oflag=seek_bytes conv=notrunc status=none
[ "$(dd if=mem bs=13 count=1 skip=$at iflag=skip_bytes status=none)" = 'across a page' ]

grep -q 'not mapped' vcpu/0/translate,gva=0x7fff00000000
if dd if=vcpu/0/vmem bs=8 count=1 skip=$((0x7fff00000000)) iflag=skip_bytes of=/dev/null 2>/dev/null; then
    echo 'an address that is not mapped was read' >&2
    exit 1
fi
# Names with parameters are not listed.
[ -z "$(find vcpu -name '*gva*')" ]
echo resume > ctl
