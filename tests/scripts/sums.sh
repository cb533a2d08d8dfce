#!/bin/bash
# md5sum of a range of mem is md5sum of the file in ram/ that mem.map names for it. $1: a mountpoint.
set -euo pipefail
echo pause > "$1/ctl"
checked=0
while read -r range kind where; do
    [ "$kind" = ram ] || continue
    start=$((${range%-*})) end=$((${range#*-}))
    name=${where%@*} offset=$((${where#*@}))
    of_mem=$(dd if="$1/mem" bs=1M iflag=skip_bytes,count_bytes skip=$start count=$((end - start)) status=none | md5sum)
    of_ram=$(dd if="$1/$name" bs=1M iflag=skip_bytes,count_bytes skip=$offset count=$((end - start)) status=none | md5sum)
    [ "$of_mem" = "$of_ram" ] || { echo "$range: $of_mem, $name: $of_ram" >&2; exit 1; }
    checked=$((checked + 1))
done < "$1/mem.map"
[ "$checked" -ge 2 ]
echo resume > "$1/ctl"
