# shellcheck shell=dash disable=SC2154
# For checks.sh: a PV domain with dom0's own kernel, which therefore has everything where dom0's has it, and the Debian guest's
# program.

KERNEL_MAP=ffffffff80000000
LOG=/var/log/xen/console/guest-pv.log

pv() {
    type=pv paused=yes domain pv 'kernel="/lab/vmlinux"' 'ramdisk="/lab/initrd.gz"' 'memory=128' 'vcpus=2' \
        'extra="console=hvc0 quiet mitigations=off init_on_alloc=0 panic=-1"'
}

# A guest that has not begun can't be mounted, which is said.
pv_early() {
    ! vmtree info xen:pv > /run/said 2>&1 && cat /run/said && grep -q 'still starting' /run/said
    early=$?
    xl unpause pv
    return $early
}

# It starts, and makes page tables all the while, while all of its memory is read again and again.
pv_boots() {
    await 60 mounted || return 1
    rm -f /run/booted
    (times=0; until [ -e /run/booted ]; do dd if="$mnt/mem" of=/dev/null bs=1M 2>/dev/null && times=$((times + 1)); done
        echo "read $times times") &
    reader=$!
    await 180 pv_says VMTREE-SECRET
    booted=$?
    : > /run/booted
    wait $reader
    [ $booted = 0 ] || tail -n 20 "$LOG"
    unmounted && return $booted
}

pv_says() {
    grep -F "guest says: $1" "$LOG"
}

pv_said() {
    wc -l < "$LOG"
}

pv_listed() {
    vmtree list | grep '^xen:pv .*PV, 2 vCPUs, 128 MiB, running' && vmtree info xen:pv | grep '^guest pv$'
}

# All of the domain's pages but those of its kernel's that lie at no frame: some tens.
pv_ram() {
    bytes=$(sed -n 's/^ram_bytes //p' "$mnt/info")
    pages=$(($(xl list pv | awk 'NR == 2 { print $3 }') * 256))
    echo "$((bytes / 4096)) of $pages pages"
    cat "$mnt/mem.map"
    [ $((bytes / 4096)) -le "$pages" ] && [ $((bytes / 4096)) -ge $((pages - 64)) ]
}

# What lacks hardware virtualization, and why.
pv_lacks() {
    for name in events views view vcpu/0/inject vcpu/0/ctl vcpu/0/msr vcpu/0/regs/efer; do
        [ ! -e "$mnt/$name" ] || { echo "$name is there"; return 1; }
    done
    for line in 'event cr3' views injection step msrs; do
        grep "^$line no: .*PV" "$mnt/capabilities" || return 1
    done
    grep -x 'virtual_memory yes' "$mnt/capabilities" && grep -x 'pause yes' "$mnt/capabilities"
}

# The address of a symbol in the guest's kernel, without 0x.
symbol() {
    sed -n "s/ . $1\$//p" /proc/kallsyms
}

# Where a virtual address lies by the guest's page tables.
translated() {
    sed -n 's/.* gpa=0x\([0-9a-f]*\) .*/\1/p' "$mnt/vcpu/$1/translate,gva=0x$2"
}

bytes_at() {
    dd if="$1" bs=1 skip="$2" count="$3" iflag=skip_bytes 2>/dev/null
}

# The kernel's banner is where page tables, and the kernel's own map, say, and is that of the same kernel in dom0.
pv_banner() {
    at=$(symbol linux_banner)
    gpa=$(translated 0 "$at")
    other=$(translated 1 "$at")
    echo "banner at $at: $gpa, $other"
    [ $((0x$gpa)) -eq $((0x$at - 0x$KERNEL_MAP)) ] && [ "$gpa" = "$other" ] || return 1
    length=$(wc -c < /proc/version)
    bytes_at "$mnt/mem" $((0x$gpa)) "$length" > /run/banner
    cat /run/banner
    cmp /run/banner /proc/version || return 1
    # The same by virtual memory: an offset is the address without its top bit.
    bytes_at "$mnt/vcpu/0/vmem" $((0x$at & 0x7fffffffffffffff)) "$length" | cmp - /proc/version
}

# Page tables can be read, and a write of one is refused with its reason, and is none.
pv_tables() {
    gpa=$((0x$(translated 0 "$(symbol init_top_pgt)")))
    bytes_at "$mnt/mem" $gpa 4096 > /run/table && [ "$(tr -d '\0' < /run/table | wc -c)" -gt 0 ] || return 1
    ! echo oh | dd of="$mnt/mem" bs=64 seek=$gpa oflag=seek_bytes conv=notrunc || return 1
    tail -n 1 "$mnt/errors"
    tail -n 1 "$mnt/errors" | grep -q 'page tables' && bytes_at "$mnt/mem" $gpa 4096 | cmp - /run/table
}

reg() {
    cat "$mnt/vcpu/$1/regs/$2"
}

# Read while it is paused, they are the same twice, and those of a kernel.
pv_registers() {
    echo pause > "$mnt/ctl" || return 1
    pv_same 0 && pv_same 1
    same=$?
    echo resume > "$mnt/ctl"
    return $same
}

pv_same() {
    cat "$mnt/vcpu/$1/regs/all" > /run/once && cat "$mnt/vcpu/$1/regs/all" > /run/twice && cmp /run/once /run/twice || return 1
    grep -E '^(rip|rsp|cr3|cs\.sel|gs\.sel)=' /run/once
    grep -q '^cs.sel=0x[0-9a-f]* cs.base=0x0* cs.limit=0xffffffff cs.attr=0xa0fb$' /run/once && [ $(($(reg "$1" cr3))) -ne 0 ] || return 1
    [ $(($(reg "$1" cr3) & 0xfff)) -eq 0 ] || return 1
    # In the kernel, as an idle vCPU is, which waits in a hypercall; or in the lower half, where the guest's shell is.
    rip=$(reg "$1" rip)
    [ $((rip)) -gt 0 ] || { [ $((rip)) -ge $((0x$(symbol _stext))) ] && [ $((rip)) -lt $((0x$(symbol _etext))) ]; }
}

# Registers that are written are those that are read, others are refused, and the guest goes on with its own.
pv_writes() {
    echo pause > "$mnt/ctl" || return 1
    before=$(reg 0 all)
    old=$(reg 0 r15)
    echo 'r15=0x1234567890 r14=7 dr0=0x2000' > "$mnt/vcpu/0/regs/all" && reg 0 r15 && [ $(($(reg 0 r15))) -eq $((0x1234567890)) ] &&
        [ $(($(reg 0 r14))) -eq 7 ] && [ $(($(reg 0 dr0))) -eq $((0x2000)) ] && ! echo 'r15=1 cr3=0' > "$mnt/vcpu/0/regs/all" &&
        ! echo 'r15=1 rip=0x800000000000' > "$mnt/vcpu/0/regs/all" && [ $(($(reg 0 r15))) -eq $((0x1234567890)) ]
    wrote=$?
    r14=$(echo "$before" | sed -n 's/^r14=//p')
    echo "r15=$old r14=$r14 dr0=0" > "$mnt/vcpu/0/regs/all"
    [ "$(reg 0 all)" = "$before" ] || wrote=1
    echo resume > "$mnt/ctl"
    [ $wrote = 0 ] && pv_goes_on
}

pv_goes_on() {
    said=$(pv_said)
    sleep 3
    echo "said $said, then $(pv_said)"
    [ "$(pv_said)" -gt "$said" ]
}

pv_pause() {
    echo pause > "$mnt/ctl" && [ "$(cat "$mnt/state")" = paused ] && xl list pv | grep ' ..p--- ' || return 1
    # What it said before may still be on its way.
    sleep 1
    ! pv_goes_on
    stood=$?
    echo resume > "$mnt/ctl" && [ "$(cat "$mnt/state")" = running ] && [ $stood = 0 ] && pv_goes_on
}

# The string that the guest says, where its program keeps it, becomes another, which it then says. Elsewhere it is in buffers
# that are something else by the time that all of memory is searched.
pv_change() {
    strings -t d -n 29 "$mnt/mem" | grep "^ *[0-9]* kept=$1\$" > /run/found || { echo "$1 is not in memory"; return 1; }
    : > /run/kept
    while read -r at _; do
        at=$((at + 5))
        echo $at >> /run/kept
        printf %s "$2" | dd of="$mnt/mem" bs=64 seek=$at oflag=seek_bytes conv=notrunc 2>/dev/null || return 1
    done < /run/found
    cat /run/kept
    await 60 pv_says "$2"
    said=$?
    tail -n 1 "$LOG"
    return $said
}

# A guest that was paused by a daemon which is killed goes on.
pv_killed() {
    echo pause > "$mnt/ctl" && ! pv_goes_on || return 1
    kill -9 "$(sed -n 's/^daemon_pid //p' "$mnt/info")"
    await 20 gone && pv_goes_on
}

# Another mount sees what was written by the one before.
pv_seen_again() {
    [ -s /run/kept ] || return 1
    while read -r at; do
        bytes_at "$mnt/mem" "$at" ${#1}
        [ "$(bytes_at "$mnt/mem" "$at" ${#1})" = "$1" ] || return 1
    done < /run/kept
}

# Memory that the guest gives away and takes back: the map follows.
pv_balloon() {
    before=$(sed -n 's/^ram_bytes //p' "$mnt/info")
    xl mem-set pv 112 && await 30 pv_smaller "$before" && echo "$before, then $(sed -n 's/^ram_bytes //p' "$mnt/info")" &&
        dd if="$mnt/mem" of=/dev/null bs=1M 2>/dev/null && pv_goes_on && xl mem-set pv 128 && await 30 pv_as_large "$before"
}

pv_smaller() {
    [ "$(sed -n 's/^ram_bytes //p' "$mnt/info")" -lt $(($1 - (10 << 20))) ]
}

pv_as_large() {
    [ "$(sed -n 's/^ram_bytes //p' "$mnt/info")" -ge "$1" ]
}

pv_checks() {
    check start pv || return
    check early pv_early
    check boots pv_boots || return
    check listed pv_listed
    check mount mounted || return
    cat "$mnt/capabilities" "$mnt/vcpu/0/regs/all"
    check ram pv_ram
    check lacks pv_lacks
    check banner pv_banner
    check tables pv_tables
    check registers pv_registers
    check writes pv_writes
    check pause pv_pause
    check change pv_change VMTREE-SECRET-0123456789abcdef CHANGED-BY-VMTREE-FROM-OUTSIDE
    check killed pv_killed
    check mount-again mounted || return
    check seen-again pv_seen_again CHANGED-BY-VMTREE-FROM-OUTSIDE
    check balloon pv_balloon
    check lives domain_lives pv
    check destroyed destroyed_under_the_mount pv
    check left nothing_is_left
}
