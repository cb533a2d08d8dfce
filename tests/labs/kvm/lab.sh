#!/bin/sh
# Hardware-style KVM without the hardware: QEMU's TCG gives a Debian kernel (L1) AMD's SVM and nested paging, kvm_amd runs on
# it, and in L1 a stock QEMU with -accel kvm runs the guests (L2) that vmtree mounts and checks.
#
#   tests/labs/kvm/lab.sh prepare     fetch and build what is missing; prints the folder
#   tests/labs/kvm/lab.sh run [CHECK] boot L1, do all checks of checks.sh; exit 0 if none failed. With CHECK, those
#                                     checks of the conformance suite whose names begin so, for one guest
#   tests/labs/kvm/lab.sh shell       boot L1 to a shell on this terminal; `poweroff -f` or Ctrl-A X ends it
#
# Each check is a line `T|NAME|ok, absent or FAILED|DETAIL`; all that L1 said is in FOLDER/log.
# Needs cargo, apt (packages are downloaded, not installed), dpkg-deb, qemu-system-x86_64 with SeaBIOS.
# VMTREE_LAB names the folder to keep it in, VMTREE_LAB_SECONDS how long L1 may run (default 600).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
lab=${VMTREE_LAB:-$top/target/lab}/kvm
seconds=${VMTREE_LAB_SECONDS:-600}
qemu=$(command -v qemu-system-x86_64) || { echo 'qemu-system-x86_64 is not installed' >&2; exit 1; }
mkdir -p "$lab"
lab=$(cd "$lab" && pwd)

# shellcheck source=tests/labs/packages.sh
. "$here/../packages.sh"

# Copies programs of this machine to their own paths below $1, with the libraries that they load.
with_libraries() {
    root=$1
    shift
    for program in "$@"; do
        # Not every program has libraries: ldd then fails.
        { echo "$program"; ldd "$program" 2>/dev/null | grep -oE '/[^ ]+' || true; } |
            while read -r file; do
                mkdir -p "$root${file%/*}"
                cp -L "$file" "$root$file"
            done
    done
}

# The files that QEMU reads when it starts the guests of this lab, from where this QEMU looks for them.
firmware() {
    mkdir -p "$1"
    for file in bios-256k.bin kvmvapic.bin linuxboot_dma.bin pvh.bin; do
        found=$("$qemu" -L help | while read -r folder; do
            [ ! -f "$folder/$file" ] || { echo "$folder/$file"; break; }
        done)
        cp -L "${found:?$file of QEMU is not to be found}" "$1/"
    done
}

archive() {
    (cd "$1" && find . | "$lab/busybox" cpio -o -H newc 2>/dev/null)
}

# What doesn't change with our program: base.cpio (busybox, kernel modules, QEMU) and the kernel. Not compressed: TCG would
# unpack it slowly.
prepare_base() {
    made_of=$(cksum "$qemu" "$here/lab.sh" "$here/../packages.sh")
    if [ -f "$lab/base.cpio" ] && [ "$(cat "$lab/made-of" 2>/dev/null)" = "$made_of" ]; then
        return
    fi
    cd "$work"
    kernel_and_busybox
    mkdir -p root/bin root/proc root/sys root/dev root/run root/tmp root/mnt root/modules
    cp "$busybox" root/bin/busybox
    for module in irqbypass kvm kvm-amd fuse; do
        cp "$(find kernel/lib/modules -name "$module.ko")" root/modules/
    done
    # The shell of Debian, because that of busybox takes its own grep and dd before those of the PATH.
    dash=$(command -v dash)
    with_libraries root "$qemu" "$dash" "$(command -v grep)" "$(command -v dd)"
    ln -s "$dash" root/bin/sh
    firmware root/firmware
    cp "$busybox" "$lab/busybox"
    archive root > base.cpio
    mv kernel/boot/vmlinuz-* "$lab/vmlinuz"
    mv base.cpio "$lab/base.cpio"
    echo "$made_of" > "$lab/made-of"
    cd "$lab"
}

# What changes with each build: our programs, the guests and the checks.
prepare_ours() {
    (cd "$top" && "${CARGO:-cargo}" build --quiet -p vmtree -p vmtree-conformance >&2)
    built=${CARGO_TARGET_DIR:-$top/target}/debug
    ours=$work/ours
    mkdir -p "$ours/bin" "$ours/lab"
    with_libraries "$ours" "$built/vmtree" "$built/vmtree-conformance"
    for program in vmtree vmtree-conformance; do
        strip -o "$ours/bin/$program" "$ours$built/$program" 2>/dev/null || cp "$ours$built/$program" "$ours/bin/"
        rm "$ours$built/$program"
    done
    (cd "$top" && "${CARGO:-cargo}" run --quiet -p vmtree-guest -- "$ours/lab/guest.elf" >&2)
    debian=$("$here/../qemu/lab.sh" prepare)
    cp "$debian/vmlinuz" "$debian/initrd.gz" "$ours/lab/"
    cp "$here/checks.sh" "$here/l2.sh" "$top/tests/scripts/qemu/change-string.sh" "$ours/lab/"
    cp "$here/l1-init.sh" "$ours/init"
    chmod 755 "$ours/init" "$ours"/lab/*.sh
    archive "$ours" > "$work/ours.cpio"
}

prepare() {
    work=$(mktemp -d "$lab/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM HUP
    prepare_base
    prepare_ours
    cat "$lab/base.cpio" "$work/ours.cpio" > "$work/initrd"
    mv "$work/initrd" "$lab/initrd"
}

# L1 itself. $1: the serial console, $2: words for the kernel's command line.
l1() {
    exec timeout -k 5 "$seconds" "$qemu" -accel tcg,thread=multi -cpu EPYC,+svm,+npt -smp 2 -m 2G \
        -nodefaults -display none -no-reboot -serial "$1" \
        -kernel "$lab/vmlinuz" -initrd "$lab/initrd" -append "console=ttyS0 quiet panic=-1 $2"
}

run() {
    log=$lab/log
    : > "$log"
    (l1 "file:$log" "${1:+vmtree_only=$1}" </dev/null 2> "$work/stderr") &
    l1=$!
    # QEMU ends with this script, whatever ends it; timeout ends it in any case.
    trap 'kill "$l1" 2>/dev/null || true; rm -rf "$work"' EXIT
    wait "$l1" || echo "L1 was ended after $seconds s, or by an error" >&2
    tr -d '\r' < "$log" > "$work/log"
    grep '^T|' "$work/log" || true
    if ! grep -q '^T|end|ok|' "$work/log"; then
        echo "L1 did not come to its end; the last it said:" >&2
        tail -n 20 "$work/log" "$work/stderr" >&2
        return 1
    fi
    ! grep -q '^T|[^|]*|FAILED|' "$work/log"
}

case ${1:-} in
prepare)
    prepare
    echo "$lab"
    ;;
run)
    prepare
    run "${2:-}"
    ;;
shell)
    prepare
    rm -rf "$work"
    seconds=0 l1 mon:stdio vmtree_shell
    ;;
*)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
