# shellcheck shell=dash disable=SC2154
# For checks.sh: the mount of the conformance guest beside other tools, and after deaths.

TICKS=$((0x207008))

word() {
    dd if="$mnt/mem" bs=8 skip=$(($1 / 8)) count=1 2>/dev/null | od -A n -t d8
}

# The guest's ticks, at the start of a second and at its end.
moves() {
    set -- "$(word $TICKS)"
    sleep 1
    set -- "$1" "$(word $TICKS)"
    echo "ticks" "$@"
    [ "$1" -ne "$2" ]
}

stands() {
    ! moves
}

# A pause of another tool's stays when ours ends, which then says so.
pause_of_others() {
    moves && xl pause guest && stands && echo pause > "$mnt/ctl" && stands && ! echo resume > "$mnt/ctl" && stands
    stood=$?
    xl unpause guest
    moves && return $stood
}

# The background traffic has a cpuid on each tick. The record is read whole: a vCPU is then held. (Busybox's timeout would
# leave a process that keeps the file open.)
hold() {
    exec 3<> "$mnt/events/cpuid"
    dd bs=65536 count=1 <&3 2>/dev/null
}

killed_while_holding() {
    hold && stands || return 1
    daemon=$(sed -n 's/^daemon_pid //p' "$mnt/info")
    kill -9 "$daemon"
    exec 3>&-
    # The kernel tells of a close behind it.
    await 20 gone && mounted && moves && hold && exec 3>&- && await 10 moves
}

# In the middle of all there is: rules, a view with a copy, steps, readers, a vCPU that is held and one that reads all of
# memory. The next mount finds the guest as if nothing had been.
umounted_under_load() {
    mkdir "$mnt/views/load" && echo "0x207000 copy" > "$mnt/views/load/remap" && echo load > "$mnt/vcpu/0/view" || return 1
    echo '0x207000-0x208000 r-x' > "$mnt/views/load/access" || return 1
    for file in events/slat events/singlestep mem; do cat "$mnt/$file" > /dev/null 2>&1 & done
    hold && timeout 60 vmtree umount "$mnt" && ! grep " $mnt " /proc/mounts || return 1
    exec 3>&-
    wait
    mounted && [ "$(ls "$mnt/views")" = 0 ] && ! [ -s "$mnt/views/0/access" ] && moves
}

gone() {
    ! grep " $mnt " /proc/mounts
}

# What reads while the domain goes is told that the VM is no more; then the mount goes by itself.
destroyed_under_the_mount() {
    exec 4< "$mnt/mem"
    # Its own message is wanted.
    (while said=$(dd bs=8 count=1 <&4 2>&1 >/dev/null); do :; done && echo "$said" > /run/said) &
    exec 4<&-
    xl destroy "${1:-guest}"
    wait
    cat /run/said
    await 20 gone && grep -q 'No such device' /run/said
}
