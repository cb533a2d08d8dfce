#!/usr/bin/env bash
# Which address spaces the guest switched to, and how often, in its next COUNT switches.
# usage: process-switches.sh MOUNTPOINT [COUNT]
set -eu
cd "$1"
# By a pipe: head would try to seek back in a file, and events are no file to seek in.
cat events/cr3,dir=to | head -n "${2:-200}" | grep -o 'new=[^ ]*' | sort | uniq -c | sort -rn
