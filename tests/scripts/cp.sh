#!/bin/sh
# cp --sparse=always skips the hole: 4 GiB and more are copied at once, and take the room of RAM alone.
# $1: the mountpoint of emu:ram=64M.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

printf 'kept by cp' | dd of="$1/mem" bs=1 seek=$((0x100ffe123)) conv=notrunc status=none
echo pause > "$1/ctl"
# All of 4 GiB read through a pipe of zeros would take many times as long.
timeout 5 cp --sparse=always "$1/mem" "$dir/copy"

[ "$(stat -c %s "$dir/copy")" -eq "$(stat -c %s "$1/mem")" ]
[ "$(stat -c %b "$1/mem")" -eq $((64 * 1048576 / 512)) ]
# Pages of zeros are left out by cp; all else is in RAM.
[ "$(stat -c %b "$dir/copy")" -le "$(stat -c %b "$1/mem")" ]
[ "$(dd if="$dir/copy" bs=10 count=1 skip=$((0x100ffe123)) iflag=skip_bytes status=none)" = 'kept by cp' ]

cmp -n $((48 * 1048576)) "$1/mem" "$dir/copy"
cmp -i $((0x100000000)) "$1/mem" "$dir/copy"
echo resume > "$1/ctl"
