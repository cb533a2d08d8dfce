#!/bin/sh
# What CI runs of the Xen lab: registers, memory and pause, and each way in which the driver holds, answers, hides and injects,
# in two minutes. All of the suite is `lab.sh run bochs`; watched-progress, for one, takes more than a minute by itself.
set -eu
# Bochs's clock is its own: beside others it takes longer.
export VMTREE_LAB_SECONDS="${VMTREE_LAB_SECONDS:-1200}"
exec "${0%/*}/lab.sh" run bochs tree memory-image memory-ordered registers-w pause-s step-counts events-observe control-continue \
    control-deny control-inject held-close slat-watch slat-write-answers slat-walls views-switch views-copy views-hidden \
    inject-exceptions inject-interrupt
