#!/usr/bin/env bash
# What the guest does, by kind of event, in its next COUNT events.
# usage: kinds.sh MOUNTPOINT [COUNT]
set -eu
cd "$1"
cat events/all,format=json | head -n "${2:-20000}" | jq -r 'select(.kind != "lost") | "vCPU \(.vcpu) \(.kind)"' | sort | uniq -c
