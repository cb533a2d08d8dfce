#!/usr/bin/env bash
# Which address spaces the guest switched to, and how often, in its next COUNT switches.
# usage: process-switches.sh MOUNTPOINT [COUNT]
set -euo pipefail
cd "$1"
head -n "${2:-200}" events/cr3,dir=to | grep -o 'new=[^ ]*' | sort | uniq -c | sort -rn
