#!/usr/bin/env bash
# What the guest does, by kind of event, in its next COUNT events.
# usage: kinds.sh MOUNTPOINT [COUNT]
set -euo pipefail
cd "$1"
head -n "${2:-500}" events/all,format=json | jq -r 'select(.kind != "lost") | "vCPU \(.vcpu) \(.kind)"' | sort | uniq -c
