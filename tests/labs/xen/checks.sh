#!/bin/sh
# shellcheck shell=dash
# What is checked in dom0, a line a check: T|NAME|ok, absent or FAILED|DETAIL.
#
#   checks.sh [emu|debian|pv|vcpus=N] [CHECK...]    what is mounted (the conformance guest, with N vCPUs), and how the
#                                                   names of the suite's checks begin
#   checks.sh ends                                  the conformance guest, and what comes behind the whole suite alone
#   checks.sh walls                                 what Xen's emulator can't deny
#   checks.sh hvm [CHECK...]                        the conformance guest in an HVM domain
set -u
# shellcheck source=tests/labs/xen/lib.sh
. /lab/lib.sh

kind=guest
vcpus=1
# Every event takes dom0 a millisecond of the one processor, and every step of two vCPUs ten.
patience=120
case ${1:-} in
emu | debian | pv | ends | walls) kind=$1 && shift ;;
hvm) kind=hvm && shift ;;
vcpus=*) vcpus=${1#vcpus=} && shift ;;
esac
mnt=/mnt/vm
failed=/run/failed

now() {
    cut -d. -f1 /proc/uptime
}

tell() {
    [ "$2" != FAILED ] || : > "$failed"
    echo "T|$1|$2|$(printf %s "$3" | tr '\r\n|' '  /' | tail -c 400)"
}

# A check: its name and a command. What that says is the detail.
check() {
    name=$1
    shift
    begun=$(now)
    if said=$("$@" 2>&1); then word=ok; else word=FAILED; fi
    tell "$name" "$word" "$said ($(($(now) - begun)) s)"
    [ $word = ok ]
}

host() {
    xl info | sed -n 's/^\(xen_version\|virt_caps\) *: //p' && [ -c /dev/fuse ]
}

mounted() {
    timeout 200 vmtree mount "$source" "$mnt" && grep -E '^(driver|ram_bytes|vcpus) ' "$mnt/info"
}

# The suite's lines as ours, each with the seconds since the one before.
suite() {
    begun=$(now)
    vmtree-conformance "$mnt" --patience "$patience" "$@" 2>&1 | while read -r word rest; do
        took="$(($(now) - begun)) s"
        begun=$(now)
        case "$word $rest" in
        # Its loop has interrupts off, and Bochs takes none from a guest then: nothing else runs, neither Xen nor dom0, until it ends.
        "FAILED inject-nmi: "*over*) [ "${machine:-}" != bochs ] || word=absent ;;
        esac
        case $word in
        ok) tell "suite-$rest" ok "$took" ;;
        absent | FAILED) tell "suite-${rest%%:*}" "$word" "${rest#*: } ($took)" ;;
        [0-9]*) tell suite-end ok "$word $rest" ;;
        *) echo "$word $rest" ;;
        esac
    done
}

# The checks of the suite whose names begin so.
conformance() {
    only=
    for begins; do
        for name in $(vmtree-conformance --list | cut -d ' ' -f 1 | grep "^$begins"); do only="$only --only $name"; done
    done
    # shellcheck disable=SC2086 # several words
    suite $only
}

unmounted() {
    timeout 60 vmtree umount "$mnt" && ! grep " $mnt " /proc/mounts
}

no_vmtree() {
    ! pidof vmtree
}

nothing_is_left() {
    await 20 no_vmtree || { ps; false; }
}

domain_lives() {
    xl list "$1" && ! xl list "$1" | grep -q -- '-[cd]- '
}

# Mounts, runs the suite's checks, unmounts.
mount_and_check() {
    if check mount mounted; then
        cat "$mnt/capabilities"
        conformance "$@"
        check umount unmounted
    fi
    check left nothing_is_left
}

# Without words for the suite: what happens beside other tools, and after deaths.
ends() {
    # shellcheck source=tests/labs/xen/ends.sh
    . /lab/ends.sh
    # shellcheck source=tests/labs/xen/walls.sh
    . /lab/walls.sh
    check mount-again mounted || return
    walls
    check pause-of-others pause_of_others
    check killed-while-holding killed_while_holding
    check umounted-under-load umounted_under_load
    check destroyed destroyed_under_the_mount
    check left-after-all nothing_is_left
}

debian_says() {
    grep "guest says: VMTREE-SECRET" /var/log/xen/console/guest-debian.log
}

# The tracer of the docs (docs/examples/syscalls.md), and that the guest goes on behind it.
traced() {
    timeout 600 python3 /lab/syscalls.py "$mnt" 20
}

goes_on() {
    said_before=$(debian_says | wc -l)
    await 60 said_more
}

said_more() {
    [ "$(debian_says | wc -l)" -gt $((said_before + 1)) ]
}

trace() {
    if check mount mounted; then
        if grep -qx 'event slat x yes' "$mnt/capabilities"; then
            check tracer traced
            check goes-on goes_on
        else
            tell tracer absent "$(sed -n 's/^event slat x no: //p' "$mnt/capabilities")"
        fi
        check umount unmounted
    fi
    check left nothing_is_left
}

check host host
case $kind in
emu)
    source=emu:
    mount_and_check "$@"
    ;;
guest)
    source=xen:guest
    check start guest guest "$vcpus" && mount_and_check "$@"
    check lives domain_lives guest
    [ $# -gt 0 ] || ends
    ;;
ends)
    source=xen:guest
    check start guest guest "$vcpus" && ends
    ;;
walls)
    # shellcheck source=tests/labs/xen/ends.sh
    . /lab/ends.sh
    # shellcheck source=tests/labs/xen/walls.sh
    . /lab/walls.sh
    source=xen:guest
    if check start guest guest 1 && check mount mounted; then
        walls
        check umount unmounted
    fi
    check left nothing_is_left
    check lives domain_lives guest
    ;;
debian)
    source=xen:debian
    check start debian debian && check says await 300 debian_says && trace
    check lives domain_lives debian
    ;;
pv)
    # shellcheck source=tests/labs/xen/ends.sh
    . /lab/ends.sh
    # shellcheck source=tests/labs/xen/pv.sh
    . /lab/pv.sh
    source=xen:pv
    pv_checks
    ;;
esac
[ "$kind" != hvm ] || {
    # shellcheck source=tests/labs/xen/hvm.sh
    . /lab/hvm.sh
    source=xen:hvm
    hvm_checks "$@"
}
tell end ok "$(now) s after dom0's start"
[ ! -e "$failed" ]
