#!/bin/sh
# Finds a string of a guest's program with grep in mem and changes it by dd. $1: the mountpoint, $2: the string,
# $3: what it becomes, of the same length.
set -eu
mem=$1/mem

[ ${#2} -eq ${#3} ] || { echo 'both strings must have the same length' >&2; exit 1; }
# It may lie in several places: the program's own, and buffers it went through.
found=$(LC_ALL=C grep -abo -F -e "$2" "$mem" | cut -d: -f1)
[ -n "$found" ] || { echo "'$2' is not in memory" >&2; exit 1; }
for at in $found; do
    printf %s "$3" | dd of="$mem" seek="$at" oflag=seek_bytes conv=notrunc status=none
done
echo "$found"
