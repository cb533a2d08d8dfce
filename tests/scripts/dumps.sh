#!/bin/sh
# hexdump, xxd and od show the same bytes at the same addresses. $1: the mountpoint of emu:ram=64M.
set -eu
mem=$1/mem
at=$((0x100fff000))
printf 'vmtree was here\n' | dd of="$mem" bs=16 seek=$at oflag=seek_bytes conv=notrunc status=none

expect() {
    case $1 in
    *"$2"*) ;;
    *) echo "$3 shows '$1'" >&2; exit 1 ;;
    esac
}

expect "$(hexdump -C -s $at -n 16 "$mem")" '100fff000  76 6d 74 72 65 65 20 77  61 73 20 68 65 72 65 0a' hexdump
expect "$(xxd -s $at -l 16 "$mem")" '100fff000: 766d 7472 6565 2077 6173 2068 6572 650a' xxd
expect "$(od -A x -t x1z -j $at -N 16 "$mem")" '100fff000 76 6d 74 72 65 65 20 77 61 73 20 68 65 72 65 0a' od

# xxd puts back what was edited.
xxd -s $at -l 16 "$mem" | sed 's/vmtree was here./VMTREE/; s/766d 7472 6565/564d 5452 4545/' | xxd -r - "$mem"
expect "$(xxd -s $at -l 16 "$mem")" 'VMTREE was here' 'xxd after xxd -r'

# An address in the hole reads as zeros.
expect "$(hexdump -C -s $((0x80000000)) -n 16 "$mem")" '80000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00' hexdump
