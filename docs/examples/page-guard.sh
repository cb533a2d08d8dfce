#!/usr/bin/env bash
# Drops every write to a range of guest-physical memory, and says who tried.
set -euo pipefail
: "${3:?usage: page-guard.sh MOUNTPOINT START END [COUNT]}"
cd "$1"
exec 3<> "events/slat,gpa=$2-$3,access=w"
for ((n = 0; n < ${4:-10}; n++)); do
    read -r line <&3
    echo "$line"
    seq=${line#seq=}
    echo "${seq%% *} deny" >&3
done
