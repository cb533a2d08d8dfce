#!/bin/sh
# grep and strings search ram/*, and tell the address. $1: the mountpoint of emu:ram=64M.
set -eu
needle="needle-$$-in-a-haystack"
printf '%s\n' "$needle" | dd of="$1/mem" bs=64 seek=$((0x100800010)) oflag=seek_bytes conv=notrunc status=none
printf '%s\n' "$needle" | dd of="$1/mem" bs=64 seek=$((0x2ffff00)) oflag=seek_bytes conv=notrunc status=none

[ "$(grep -c -a "$needle" "$1/ram/high")" -eq 1 ]
[ "$(grep -l "$needle" "$1"/ram/* | wc -l)" -eq 2 ]
[ "$(grep -a -b -o "$needle" "$1/ram/high")" = "$((0x800010)):$needle" ]
[ "$(strings -t x "$1/ram/low" | grep "$needle")" = "2ffff00 $needle" ]
# And of mem, by a window.
[ "$(dd if="$1/mem" bs=1M skip=4104 count=1 status=none | grep -c -a "$needle")" -eq 1 ]
