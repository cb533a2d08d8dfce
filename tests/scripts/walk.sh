#!/bin/bash
# ls, find, stat, du and cat of all there is: nothing hangs, nothing is missing, nothing is ENOSYS. $1: a mountpoint.
set -euo pipefail
cd "$1"
limit() { timeout 30 "$@"; }

limit ls -lR . > /dev/null
limit ls -la --author . ram > /dev/null
count=$(limit find . -printf x | wc -c)
[ "$count" -gt 10 ]
limit find . -exec stat {} + > /dev/null
# du counts RAM, not holes: mem, ram/* and the mem of view 0, and what else is small.
kib=$(limit du -sk . | cut -f1)
ram=$(awk '/^ram_bytes/ { print $2 / 1024 }' info)
[ "$kib" -ge "$ram" ] && [ "$kib" -lt $((ram * 3 + 1024)) ]
[ "$(limit stat -f -c %S .)" -eq 4096 ]

while read -r file; do
    case $file in
    ./events/stats) limit cat "$file" > /dev/null ;;
    # Pipes that wait for what may never happen.
    ./events/*) ;;
    ./mem | ./views/*/mem | */vmem | */msr) limit head -c 4096 "$file" > /dev/null 2>&1 || true ;;
    *)
        limit cat "$file" > /dev/null
        # Its size is what stat says, where stat says one.
        said=$(stat -c %s "$file") read=$(limit wc -c < "$file")
        case $file in
        */state | ./errors | ./cache) ;;
        *) [ "$said" -eq "$read" ] || { echo "$file: stat $said, read $read" >&2; exit 1; } ;;
        esac
        ;;
    esac
done < <(find . -type f -perm -400)

# A name that is not there, tests and completions of a shell leave nothing in errors.
before=$(wc -l < errors)
[ ! -e no-such-file ]
[ "$(wc -l < errors)" -eq "$before" ]

# What tools ask of any file: sync, locks, extended attributes.
sync mem
limit flock mem true
getfattr -d mem 2> /dev/null || true
limit tail -c 16 mem | wc -c | grep -qx 16
