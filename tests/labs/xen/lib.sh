# shellcheck shell=dash
# For scripts in dom0: . /lab/lib.sh

# Waits until a command succeeds. $1: seconds.
await() {
    until_second=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt "$until_second" ] || return 1
        usleep 100000
    done
}

# A domain named $1, PVH or of the type $type, that waits for xl unpause if there is a $paused; further arguments are lines of
# its configuration.
domain() {
    config=/run/$1.cfg
    printf '%s\n' "name=\"$1\"" "type=\"${type:-pvh}\"" 'on_crash="destroy"' 'on_reboot="destroy"' > "$config"
    shift
    printf '%s\n' "$@" >> "$config"
    xl create ${paused:+-p} -q "$config"
}

# The guest of tests/guest as the domain $1, with $2 vCPUs. Ticks that it missed while it was paused don't come afterwards,
# which is not Xen's default: the suite compares the ticks of a guest that is paused and one that is not.
guest() {
    domain "$1" 'kernel="/lab/guest.elf"' 'memory=32' "vcpus=$2" 'altp2m="external"' \
        'timer_mode="no_missed_ticks_pending"'
}

# The guest of tests/labs/qemu as the domain $1.
debian() {
    domain "$1" 'kernel="/lab/vmlinuz"' 'ramdisk="/lab/initrd.gz"' 'memory=160' 'vcpus=1' 'altp2m="external"' \
        'extra="console=hvc0 quiet nokaslr nofsgsbase rodata=off mitigations=off init_on_alloc=0 panic=-1"'
}
