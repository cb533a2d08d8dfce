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
TICKS=$((0x200808))

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

# A line a check of the suite: ok NAME, absent NAME: WHY or FAILED NAME: WHY.
conformance() {
    begun=$(cut -d. -f1 /proc/uptime)
    timeout "$1" vmtree-conformance "$mnt" > "$dir/suite" 2>&1
    ended=$?
    while read -r word name why; do
        case $word in
        ok) tell "suite-$name" ok '' ;;
        absent | FAILED) tell "suite-${name%:}" "$word" "$(printf %s "$why" | tr '|' '/')" ;;
        esac
    done < "$dir/suite"
    took="($(($(cut -d. -f1 /proc/uptime) - begun)) s)"
    if [ $ended = 0 ]; then word=ok; else word=FAILED; fi
    tell suite $word "exit $ended: $(tail -n 1 "$dir/suite" | tr '|' '/') $took"
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

# Without the PIT, because a CR8 write while an interrupt waits with interrupts off ends L1's QEMU (its TCG forgets a lock:
# "tcg_handle_interrupt: assertion failed"). The guest writes CR8 when it starts, and SeaBIOS leaves the PIT ticking.
elf_guest() {
    guest=$1-
    shift
    l2_start elf "$@" -smp 2 -machine pit=off -kernel /lab/guest.elf || { tell start FAILED "$(cat "$dir/stderr")"; return; }
    check mount mounted
    check accelerator accelerator_is_kvm
    check guest-runs guest_runs
    check greeting greeting_is_answered
    check pmemsave mem_equals_pmemsave
    conformance 120
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

guest=
check host host
# shellcheck disable=SC2086 # several words
elf_guest elf-shared $SHARED
elf_guest elf-private
# shellcheck disable=SC2086 # several words
debian_guest debian-shared $SHARED
debian_guest debian-private
guest=
tell end ok "$(cut -d. -f1 /proc/uptime) s after L1's start"
