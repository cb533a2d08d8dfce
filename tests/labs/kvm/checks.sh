#!/bin/sh
# What is checked in L1, a line a check: T|NAME|ok or FAILED|DETAIL.
set -u
# shellcheck source=tests/labs/kvm/l2.sh
. /lab/l2.sh

tell() {
    echo "T|$guest$1|$2|$3"
}

# A check: its name and a command. Its last line of output is the detail.
check() {
    name=$1
    shift
    begun=$(cut -d. -f1 /proc/uptime)
    if said=$("$@" 2>&1); then word=ok; else word=FAILED; fi
    took=$(($(cut -d. -f1 /proc/uptime) - begun))
    tell "$name" "$word" "$(printf %s "$said" | tr '\r\n|' '  /' | tail -c 300) ($took s)"
}

SHARED='-object memory-backend-memfd,id=m,size=256M,share=on -machine pc,memory-backend=m'
GREETING=$((0x201000))
REPLY=$((0x202000))
STATE=$((0x200020))
TICKS=$((0x207008))
SLOT0=$((0x200400))

host() {
    [ -c /dev/kvm ] && [ -c /dev/fuse ] && echo "Linux $(uname -r), $(qemu-system-x86_64 --version | head -n 1)"
}

word() {
    dd if="$mnt/mem" skip="$1" count=8 iflag=skip_bytes,count_bytes bs=8 status=none | od -A n -t u8 | tr -d ' '
}

# A text that ends at the first NUL, or at 64 bytes.
text() {
    dd if="$mnt/mem" skip="$1" count=64 iflag=skip_bytes,count_bytes bs=64 status=none | tr '\0' '\n' | head -n 1
}

put() {
    dd of="$mnt/mem" seek="$1" oflag=seek_bytes conv=notrunc status=none
}

mounted() {
    timeout 60 vmtree mount "qemu:$dir/qmp" "$mnt" && grep -E '^(accelerator|memory|vcpus) ' "$mnt/info" | tr '\n' ' '
}

accelerator_is_kvm() {
    grep -x 'accelerator kvm' "$mnt/info"
}

at_least() {
    [ "$(word "$1")" -ge "$2" ]
}

guest_runs() {
    await 30 at_least $STATE 1 && await 30 at_least $TICKS 5 && echo "state $(word $STATE), ticks $(word $TICKS)" &&
        [ "$(word $STATE)" = 1 ]
}

replied() {
    [ "$(text $REPLY)" = "$1" ]
}

greeting_is_answered() {
    printf 'good evening\0' | put $GREETING
    await 15 replied 'GOOD EVENING'
    answered=$?
    text $REPLY
    return $answered
}

# Two MiB at 1 MiB, of a stopped guest: kernel, mailbox and page tables are there.
mem_equals_pmemsave() {
    hmp stop > /dev/null
    hmp "pmemsave 0x100000 0x200000 \"$dir/saved\"" > /dev/null
    dd if="$mnt/mem" bs=1M skip=1 count=2 of="$dir/ours" status=none
    hmp cont > /dev/null
    [ "$(wc -c < "$dir/ours")" = 2097152 ] && cmp "$dir/saved" "$dir/ours" && echo '2 MiB are the same'
}

reg() {
    cat "$mnt/vcpu/$1/regs/$2"
}

# RIP of the first vCPU, as QEMU's own monitor shows it.
qemus_rip() {
    echo "0x$(hmp 'info registers' | sed -n 's/.*RIP=\([0-9a-f]*\).*/\1/p')"
}

rip_moves() {
    first=$(reg 0 rip)
    await 30 rip_is_not "$first" && echo "$first, then $(cat "$dir/rip")"
}

rip_is_not() {
    reg 0 rip > "$dir/rip" && [ "$(cat "$dir/rip")" != "$1" ]
}

state_is() {
    [ "$(cat "$mnt/state")" = "$1" ] && hmp 'info status' | grep -q "VM status: $1"
}

# Paused, both ways of asking give one RIP, and nothing moves.
pause_holds_rip() {
    echo pause > "$mnt/ctl" && state_is paused || return 1
    ticks=$(word $TICKS)
    set -- "$(reg 0 rip)" "$(reg 0 rip)" "$(qemus_rip)"
    echo "$*, ticks $ticks and $(word $TICKS)"
    [ "$1" = "$2" ] && [ "$1" = "$3" ] && [ "$(word $TICKS)" = "$ticks" ]
}

# While paused: a register written here is what QEMU has, and is put back.
register_is_written() {
    before=$(reg 0 r15)
    echo 0x1122334455667788 > "$mnt/vcpu/0/regs/r15" && hmp 'info registers' | grep -o 'R15=1122334455667788'
    found=$?
    echo "$before" > "$mnt/vcpu/0/regs/r15" && [ "$(reg 0 r15)" = "$before" ] && return $found
}

# A busy vCPU, so that a step doesn't wait for an interrupt in hlt: it spins in ring 3 for long (order 39 of docs/guest.md).
spin() {
    set -- "$1" $((SLOT0 + 0x10)) $((SLOT0 + 8)) $SLOT0 $((SLOT0 + 0x30))
    seq=$(($(word "$4") + 1))
    number "$1" | put "$2" && number 39 | put "$3" && number $seq | put "$4" && await 30 at_least "$5" $seq
}

# A number as 8 bytes, little-endian.
number() {
    n=$1
    bytes=
    for _ in 1 2 3 4 5 6 7 8; do
        bytes="$bytes\\0$(printf %o $((n & 255)))"
        n=$((n >> 8))
    done
    printf %b "$bytes"
}

in_ring_3() {
    echo pause > "$mnt/ctl"
    [ $(($(reg 0 cs | sed 's/^sel=\([^ ]*\).*/\1/') & 3)) = 3 ] && return
    echo resume > "$mnt/ctl"
    false
}

# Two instructions are a round of the loop: after two steps RIP is where it was, after one it is not.
steps() {
    spin 1000000000000 && await 60 in_ring_3 || return 1
    set -- "$(reg 0 rip)"
    for _ in 1 2; do
        echo step > "$mnt/vcpu/0/ctl" || return 1
        set -- "$@" "$(reg 0 rip)"
    done
    echo 'step 20' > "$mnt/vcpu/0/ctl" || return 1
    set -- "$@" "$(reg 0 rip)" "$(qemus_rip)"
    echo "rip $*"
    # The loop ends by our hand.
    echo 2 > "$mnt/vcpu/0/regs/r12" || return 1
    [ "$1" != "$2" ] && [ "$1" = "$3" ] && [ "$1" = "$4" ] && [ "$1" = "$5" ] && state_is paused
}

resumed() {
    ticks=$(word $TICKS)
    echo resume > "$mnt/ctl" && state_is running && await 30 at_least $TICKS $((ticks + 2)) &&
        echo "ticks $ticks, then $(word $TICKS)"
}

registers_and_execution() {
    check rip-moves rip_moves
    check pause pause_holds_rip
    check register-write register_is_written
    check resume resumed
    check step steps
    check resume-after-step resumed
}

# The suite, or the checks whose names begin with $1: one by one, so that one that hangs takes no other with it.
# A check says ok NAME, absent NAME: WHY or FAILED NAME: WHY.
conformance() {
    for name in $(vmtree-conformance --list | cut -d ' ' -f 1 | grep "^$1"); do
        begun=$(cut -d. -f1 /proc/uptime)
        said=$(timeout 150 vmtree-conformance "$mnt" --only "$name" 2>&1 | tr '|' '/')
        took="($(($(cut -d. -f1 /proc/uptime) - begun)) s)"
        case $said in
        "ok $name"*) tell "suite-$name" ok "$took" ;;
        "absent $name"*) tell "suite-$name" absent "$(echo "$said" | sed -n '1s/^[^:]*: //p')" ;;
        *) tell "suite-$name" FAILED "$(echo "$said" | head -n 1) $took" && echo resume > "$mnt/ctl" ;;
        esac
    done
}

unmounted() {
    timeout 30 vmtree umount "$mnt" && ! grep " $mnt " /proc/mounts
}

# What is left of our processes once all is unmounted.
nothing_is_left() {
    await 10 no_vmtree || { ps; false; }
}

no_vmtree() {
    ! pidof vmtree
}

# $1: the name, $2: how the names of the suite's checks begin, the rest: arguments of QEMU.
# Without the PIT, because a CR8 write while an interrupt waits with interrupts off ends L1's QEMU (its TCG forgets a lock:
# "tcg_handle_interrupt: assertion failed"). The guest writes CR8 when it starts, and SeaBIOS leaves the PIT ticking.
elf_guest() {
    guest=$1-
    suite=$2
    shift 2
    l2_start elf "$@" -smp 2 -machine pit=off -kernel /lab/guest.elf || { tell start FAILED "$(cat "$dir/stderr")"; return; }
    check mount mounted
    check accelerator accelerator_is_kvm
    check guest-runs guest_runs
    check greeting greeting_is_answered
    check pmemsave mem_equals_pmemsave
    registers_and_execution
    conformance "$suite"
    check qemu-lives kill -0 "$l2"
    check umount unmounted
    check left nothing_is_left
    l2_quit
    rm -r "$dir"
}

says() {
    grep -F "guest says: $1" "$dir/serial"
}

# By tests/scripts/qemu/change-string.sh, as tests/qemu.rs does it for TCG.
string_is_changed() {
    set -- VMTREE-SECRET-0123456789abcdef CHANGED-BY-VMTREE-FROM-OUTSIDE
    await 90 says "$1" || { tail -c 200 "$dir/serial"; return 1; }
    timeout 60 /lab/change-string.sh "$mnt" "$@" || return 1
    await 20 says "$2" || { tail -c 200 "$dir/serial"; return 1; }
    tail -n 1 "$dir/serial"
}

debian_guest() {
    guest=$1-
    shift
    l2_start debian "$@" -kernel /lab/vmlinuz -initrd /lab/initrd.gz -append 'console=ttyS0 quiet panic=-1' ||
        { tell start FAILED "$(cat "$dir/stderr")"; return; }
    await 90 says VMTREE-SECRET
    check mount mounted
    check accelerator accelerator_is_kvm
    check pmemsave mem_equals_pmemsave
    check string string_is_changed
    check umount unmounted
    check left nothing_is_left
    l2_quit
    rm -r "$dir"
}

# Some checks of the suite alone, if the kernel's command line asks for them.
only=$(sed -n 's/.*vmtree_only=\([^ ]*\).*/\1/p' /proc/cmdline)
guest=
check host host
if [ -n "$only" ]; then
    # shellcheck disable=SC2086 # several words
    elf_guest elf-shared "$only" $SHARED
    guest=
    tell end ok "$(cut -d. -f1 /proc/uptime) s after L1's start"
    exit
fi
# shellcheck disable=SC2086 # several words
elf_guest elf-shared '' $SHARED
elf_guest elf-private memory
# shellcheck disable=SC2086 # several words
debian_guest debian-shared $SHARED
debian_guest debian-private
guest=
tell end ok "$(cut -d. -f1 /proc/uptime) s after L1's start"
