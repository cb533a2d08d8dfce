#!/bin/sh
# tar -S asks for the holes (SEEK_HOLE), so an archive of mem has the size of RAM; and back. tar reads a sparse
# file by 512 bytes, a request each, so this takes seconds a GiB of RAM, and nothing for holes.
# $1: the mountpoint of emu:ram=8M.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

printf 'kept by tar' | dd of="$1/mem" bs=1 seek=$((0x1001ff000)) conv=notrunc status=none
echo pause > "$1/ctl"
timeout 20 tar -S -C "$1" -cf "$dir/mem.tar" mem mem.map info
[ "$(stat -c %s "$dir/mem.tar")" -lt $((9 * 1048576)) ]

mkdir "$dir/back"
tar -S -C "$dir/back" -xf "$dir/mem.tar"
[ "$(stat -c %s "$dir/back/mem")" -eq "$(stat -c %s "$1/mem")" ]
[ "$(stat -c %b "$dir/back/mem")" -le $((9 * 1048576 / 512)) ]
cmp -n $((6 * 1048576)) "$1/mem" "$dir/back/mem"
cmp -i $((0x100000000)) "$1/mem" "$dir/back/mem"
cmp "$1/mem.map" "$dir/back/mem.map"
echo resume > "$1/ctl"
