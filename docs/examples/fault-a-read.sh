#!/usr/bin/env bash
# Makes the next read of a range of guest-physical memory fault, as if its page were not there.
set -euo pipefail
: "${3:?usage: fault-a-read.sh MOUNTPOINT START END}"
cd "$1"
exec 3<> "events/slat,gpa=$2-$3,access=r"
read -r line <&3
[[ $line =~ seq=([0-9]+).*vcpu=([0-9]+).*gva=(0x[0-9a-f]+) ]]
echo "${BASH_REMATCH[1]} inject pf ${BASH_REMATCH[3]} err=0x4" >&3
echo "vCPU ${BASH_REMATCH[2]} got a page fault at ${BASH_REMATCH[3]} instead of the data"
