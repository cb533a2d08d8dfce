# shellcheck shell=dash disable=SC2154
# For checks.sh: the conformance guest in an HVM domain with a device model. It is the firmware there, so it starts at once.

SERIAL=/run/serial
# Below 1 MiB, where the guest has nothing, and reads and writes memory at its own address.
CODE=$((0xc1000))
RESULTS=$((0xc2000))

# xl wants a BIOS, which nobody uses. The device model takes 384 MiB, and uses a few of them.
hvm() {
    echo 1 > /proc/sys/vm/overcommit_memory
    type=hvm domain hvm 'firmware_override="/lab/guest.elf"' 'bios="seabios"' 'bios_path_override="/lab/guest.elf"' 'memory=64' \
        'vcpus=1' 'altp2m="external"' 'timer_mode="no_missed_ticks_pending"' 'vga="none"' 'vnc=0' 'nographic=1' \
        "serial=\"file:$SERIAL\""
}

# The device model is there, and what it leaves of dom0's memory.
hvm_model() {
    pidof xen-qemu-system-i386 >/dev/null && free -m | awk '/^Mem/ { print $4 " of " $2 " MB free" }'
}

hvm_listed() {
    vmtree list | grep '^xen:hvm .*HVM, 1 vCPUs, .*running' && vmtree info xen:hvm | grep '^guest hvm$'
}

# The memory of a PC of 64 MiB: all but what is behind the screen's registers, 16 pages that Xen's toolstack adds, and the
# devices that Xen plays.
hvm_map() {
    cat "$mnt/mem.map"
    printf '0x%016x-0x%016x %s\n' 0 0xa0000 ram 0xa0000 0xc0000 mmio 0xc0000 0x4000000 ram 0xfec00000 0xfec01000 mmio \
        0xfed00000 0xfed01000 mmio 0xfee00000 0xfee01000 mmio 0xfeff0000 0xff000000 ram | cmp - "$mnt/mem.map" || return 1
    given=$(xenstore-read "/local/domain/$(xl domid hvm)/memory/target")
    [ "$(sed -n 's/^ram_bytes //p' "$mnt/info")" = $(((given - 128 + 64) * 1024)) ]
}

put() {
    dd of="$mnt/mem" bs=1 seek="$1" conv=notrunc
}

words() {
    dd if="$mnt/mem" bs=4 skip=$(($1 / 4)) count="$2" 2>/dev/null | od -A n -t x4
}

# A write behind the screen's registers is refused, and all around them takes place.
hvm_hole() {
    ! echo hole | put $((0xa0000)) && ! echo hole | put $((0xbfff0)) || return 1
    for at in $((0x9fffc)) $((0xc0000)) $((0xffffc)) $((0x3fffffc)); do
        printf 'vmtr' | put "$at" 2>/dev/null && [ "$(words "$at" 1)" = ' 72746d76' ] || return 1
    done
}

# As xen-hvmctx has them.
hvm_registers() {
    echo pause > "$mnt/ctl" || return 1
    xen-hvmctx "$(xl domid hvm)" | sed -n '/CPU:/,/dr6/p' | grep -oE '[a-z][a-z0-9]+ +0x[0-9a-f]{16}' | tr -s ' ' '=' |
        grep -E '^(r|cr|dr)' | sort > /run/theirs
    sort "$mnt/vcpu/0/regs/all" > /run/ours
    echo resume > "$mnt/ctl"
    echo "$(wc -l < /run/theirs) registers"
    [ "$(wc -l < /run/theirs)" -ge 24 ] && ! grep -v -x -F -f /run/ours /run/theirs
}

# For the guest's kernel: IN from the serial port's status, OUT of an A to it, a read behind the screen's registers; the three
# results to memory, and a loop with PAUSE: interrupts are off, and Bochs lets Xen have the processor by that alone.
hvm_code() {
    printf '\372\146\272\375\003\354\210\303\146\272\370\003\260\101\356\213\014\045\000\000\012\000'
    printf '\211\034\045\000\040\014\000\211\004\045\004\040\014\000\211\014\045\010\040\014\000\363\220\353\374'
}

# Of both the device model has the port. An IN is told once, an OUT carries another value, and RAX stays.
hvm_ports() {
    hvm_code | put $CODE 2>/dev/null
    until echo pause > "$mnt/ctl" && grep -q '^sel=0x00[0-9a-f][08] ' "$mnt/vcpu/0/regs/cs"; do echo resume > "$mnt/ctl"; done
    echo "rip=$CODE rflags=2 rax=0 rbx=0" > "$mnt/vcpu/0/regs/all" || return 1
    exec 3<> "$mnt/events/io"
    echo resume > "$mnt/ctl"
    for answer in continue value=0x42; do
        record=$(dd bs=65536 count=1 <&3 2>/dev/null)
        echo "$record"
        record=${record#seq=}
        echo "${record%% *} $answer" >&3
    done
    await 10 hvm_ends
    exec 3>&-
    grep '^io ' "$mnt/events/stats"
    echo "$(words $RESULTS 3), $(cat $SERIAL)"
    grep -q '^io .*raised=2 ' "$mnt/events/stats" && hvm_ends && [ "$(cat $SERIAL)" = "$greeting"B ]
}

hvm_ends() {
    [ "$(words $RESULTS 3)" = ' 00000060 00000041 ffffffff' ]
}

hvm_checks() {
    check start hvm || { cat /var/log/xen/*hvm*; return; }
    check model hvm_model
    check listed hvm_listed
    # A page goes with the first ring of events.
    if check mount-first mounted; then
        check map hvm_map
        check hole hvm_hole
        check registers hvm_registers
        check umount-first unmounted
    fi
    mount_and_check "$@"
    if check mount-again mounted; then
        greeting=$(cat $SERIAL)
        check ports hvm_ports
        check umount-again unmounted
    fi
    check lives domain_lives hvm
}
