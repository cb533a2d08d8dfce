#!/usr/bin/env bash
# Which address spaces the guest switched to, and how often, in its next COUNT switches.
set -eu
: "${1:?usage: process-switches.sh MOUNTPOINT [COUNT]}"
cd "$1"
# By a pipe: head would try to seek back in a file, and events are no file to seek in.
# shellcheck disable=SC2002
cat events/cr3,dir=to | head -n "${2:-200}" | grep -o 'new=[^ ]*' | sort | uniq -c | sort -rn
