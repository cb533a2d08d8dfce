#!/bin/sh
# dd reads and writes mem: at an offset, across the hole, up to the end. $1: the mountpoint of emu:ram=64M.
set -eu
mem=$1/mem
ram_end=$((48 * 1048576))
high=$((4096 * 1048576))
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

same() {
    [ "$1" = "$2" ] || { echo "$3: '$1', expected '$2'" >&2; exit 1; }
}

# A write without conv=notrunc would do too: truncation is ignored.
printf 'written by dd' | dd of="$mem" bs=1 seek=$((high + 4091)) conv=notrunc status=none
got=$(dd if="$mem" bs=13 count=1 skip=$((high + 4091)) iflag=skip_bytes status=none)
same "$got" 'written by dd' 'read back'
got=$(dd if="$1/ram/high" bs=13 count=1 skip=4091 iflag=skip_bytes status=none)
same "$got" 'written by dd' 'the same in ram/high'

printf 'more' | dd of="$mem" bs=4 seek=$((high / 4 + 4)) status=none
got=$(dd if="$mem" bs=4 count=1 skip=$((high / 4 + 4)) status=none)
same "$got" more 'without notrunc'
same "$(stat -c %s "$mem")" $((high + 16 * 1048576)) 'size of mem'

# A read across the end of RAM gives zeros from there on, and its full length.
printf 'edge' | dd of="$mem" bs=1 seek=$((ram_end - 4)) conv=notrunc status=none
dd if="$mem" of="$dir/across" bs=8192 count=1 skip=$((ram_end - 4096)) iflag=skip_bytes status=none
same "$(stat -c %s "$dir/across")" 8192 'length across the hole'
same "$(tail -c +4093 "$dir/across" | head -c 4)" edge 'last bytes of RAM'
same "$(tail -c 4096 "$dir/across" | tr -d '\0' | wc -c)" 0 'bytes in the hole'

# A write across it does what it can, then says so.
if printf 'abcdefgh' | dd of="$mem" bs=8 seek=$((ram_end - 4)) oflag=seek_bytes conv=notrunc 2>"$dir/why"; then
    echo 'a write into the hole succeeded' >&2
    exit 1
fi
grep -q 'Input/output error' "$dir/why"
got=$(dd if="$mem" bs=4 count=1 skip=$((ram_end - 4)) iflag=skip_bytes status=none)
same "$got" abcd 'the part in RAM'

# From here to the end, and no byte more.
dd if="$mem" of="$dir/end" bs=1M skip=$((high / 1048576 + 15)) status=none
same "$(stat -c %s "$dir/end")" 1048576 'bytes up to the end'
