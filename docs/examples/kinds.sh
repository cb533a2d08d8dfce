#!/usr/bin/env bash
# What the guest does, by kind of event, in its next COUNT events.
set -eu
: "${1:?usage: kinds.sh MOUNTPOINT [COUNT]}"
cd "$1"
# By a pipe: head would try to seek back in a file, and events are no file to seek in.
# shellcheck disable=SC2002
cat events/all,format=json | head -n "${2:-20000}" | jq -r 'select(.kind != "lost") | "vCPU \(.vcpu) \(.kind)"' | sort | uniq -c
