#!/bin/sh
# Pause, look, step, resume. $1: the mountpoint of a running VM.
set -eu
cd "$1"
expect() {
    [ "$1" = "$2" ] || { echo "$3: '$1', expected '$2'" >&2; exit 1; }
}

expect "$(cat state)" running 'at first'
echo pause > ctl
expect "$(cat state)" paused 'after pause'
for vcpu in vcpu/*; do
    expect "$(cat "$vcpu/state")" paused "$vcpu"
done
# Paused, nothing moves.
one=$(cat vcpu/0/regs/all)
two=$(cat vcpu/0/regs/all)
expect "$two" "$one" 'registers while paused'
md5=$(md5sum < ram/low)
expect "$(md5sum < ram/low)" "$md5" 'RAM while paused'

echo pause > ctl
echo step > vcpu/0/ctl
echo 'step 10' > vcpu/0/ctl
expect "$(cat state)" paused 'after step'
echo flush > ctl
echo resume > ctl
expect "$(cat state)" running 'after resume'
# Two verbs in one write.
echo 'pause resume' > ctl
expect "$(cat state)" running 'after both'
