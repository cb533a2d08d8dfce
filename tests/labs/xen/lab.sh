#!/bin/sh
# A real Xen without its hardware: Xen 4.20 of Debian 13 with a small dom0, on Bochs (VMX and EPT: everything works) or in
# QEMU's TCG (SVM: quick, but no breakpoints, steps, mem_access or altp2m). The programs are built for that dom0 and checked in it.
#
#   tests/labs/xen/lab.sh prepare                     fetch and make what is missing; prints the lab's folder
#   tests/labs/xen/lab.sh build                       vmtree and the conformance suite for dom0; prints the folder
#   tests/labs/xen/lab.sh script bochs|qemu FILE...   boot, run the first FILE in dom0 by sh, print its console, exit with its
#                                                     exit code. All FILEs lie in dom0's /lab, programs with their libraries,
#                                                     beside vmtree, vmtree-conformance, guest.elf and lib.sh (source it)
#   tests/labs/xen/lab.sh run bochs|qemu [vcpus=N|emu|debian|pv|hvm|ends|walls] [CHECK...]
#                                                     boot, start the conformance guest (with 1 vCPU), mount it in dom0, run the
#                                                     suite's checks (those whose names begin as CHECK); a line a check:
#                                                     T|NAME|ok, absent or FAILED|DETAIL. Exit 0 if none failed. emu: the built-in
#                                                     machine instead; debian: Debian's kernel, and the tracer of the docs;
#                                                     pv: a PV domain, with dom0's kernel
#                                                     hvm: an HVM domain with a device model; ends: deaths, other tools and
#                                                     an unmount under load, which the whole suite is followed by
#                                                     walls: writes that Xen's emulator can't deny
#   tests/labs/xen/lab.sh shell                       dom0 in QEMU with a shell on this terminal; Ctrl-A X ends it
#   tests/labs/xen/lab.sh inside COMMAND...           a command in the Debian root: /src is this source (read-only), /lab the
#                                                     lab's folder, cargo builds into /lab/target. cargo check -p vmtree-xen
#
# Needs root, cargo, mmdebstrap, qemu-system-x86_64. Nothing is installed. VMTREE_LAB names the folder to keep it all in,
# VMTREE_LAB_SECONDS how long a machine may run (default 600). VMTREE_LAB_BUILD=no takes what was built last; VMTREE_LAB_LINUX
# and VMTREE_LAB_XEN are further words for the command lines of dom0's kernel and of Xen.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
lab=${VMTREE_LAB:-$top/target/lab}/xen
# shellcheck disable=SC2034 # boot.sh
seconds=${VMTREE_LAB_SECONDS:-600}
mkdir -p "$lab"
lab=$(cd "$lab" && pwd)

# shellcheck source=tests/labs/packages.sh
. "$here/../packages.sh"
# shellcheck source=tests/labs/xen/boot.sh
. "$here/boot.sh"

cargo=${CARGO:-cargo}

in_root() {
    (exec_in_root "$@")
}

# A command in the root, instead of this shell. All mounts are of this command alone, so that the folder can be deleted at any time.
exec_in_root() {
    rust=$(rustc --print sysroot)
    # The words are expanded by the inner shell.
    # shellcheck disable=SC2016
    exec unshare "${apart:--m}" --propagation private sh -ec '
        lab=$1 top=$2 home=$3 rust=$4 run=$5
        shift 5
        cd "$lab/root"
        mount --bind "$top" src
        mount -o remount,bind,ro src
        mount --bind "$lab" lab
        mount --bind "$run" lab/run
        mount --bind "$home" cargo
        mount --bind "$rust" rust
        mount --bind /dev dev
        mount --bind /proc proc
        exec chroot . env -i PATH=/rust/bin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 CARGO_HOME=/cargo CARGO_NET_OFFLINE=1 \
            CARGO_TARGET_DIR=/lab/target CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0 "$@"
    ' sh "$lab" "$top" "${CARGO_HOME:-$HOME/.cargo}" "$rust" "${work:-$lab}" "$@"
}

prepare_root() {
    made_of=$(cat "$here/packages" "$here/kernel.sh" "$here/unpack.sh" | cksum)
    [ "$(cat "$lab/root/made-of" 2>/dev/null)" != "$made_of" ] || return 0
    echo 'making a Debian root: a minute or two' >&2
    mmdebstrap --quiet --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "5"' --include="$(paste -s -d , "$here/packages")" \
        --customize-hook="$here/kernel.sh" trixie "$work/root" "$(mirror)" >&2
    (cd "$work/root" && mkdir src lab cargo rust && gzip -d -c boot/xen-*.gz > kernel/xen && echo "$made_of" > made-of)
    rm -rf "$lab/root" "$lab/dom0.cpio"
    mv -T "$work/root" "$lab/root"
    mkdir -p "$lab/run"
}

prepare() {
    work=$(mktemp -d "$lab/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM HUP
    prepare_root
    made_of=$(cat "$lab/root/made-of" "$here/inside.sh" "$here/dom0-init.sh" | cksum)
    if [ ! -f "$lab/dom0.cpio" ] || [ "$(cat "$lab/dom0.made-of" 2>/dev/null)" != "$made_of" ]; then
        in_root /src/tests/labs/xen/inside.sh dom0
        echo "$made_of" > "$lab/dom0.made-of"
    fi
}

# Xen's QEMU with its libraries, unpacked: HVM domains alone need it.
prepare_model() {
    [ ! -e "$lab/model/usr/libexec/xen-qemu-system-i386" ] || return 0
    echo "fetching Xen's QEMU: half a minute" >&2
    mmdebstrap --quiet --mode=root --variant=extract --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "5"' --include=qemu-system-xen trixie \
        "$work/model" "$(mirror)" >&2
    rm -rf "$lab/model"
    mv -T "$work/model" "$lab/model"
}

# vmtree with its driver for Xen, for the root's libraries.
build() {
    [ "${VMTREE_LAB_BUILD:-yes}" = yes ] || return 0
    (cd "$top" && "$cargo" fetch --quiet && "$cargo" run --quiet -p vmtree-guest -- "$lab/guest.elf") >&2
    features=
    ! grep -q '^xen = ' "$top/Cargo.toml" || features='--features vmtree/xen'
    # shellcheck disable=SC2086 # two words or none
    in_root sh -ec 'cd /src && exec cargo build --quiet -p vmtree -p vmtree-conformance "$@"' sh $features >&2
}

# Boots machine $1 with script $2 and further files in dom0, and exits with the script's exit code. $shown says in sed's words
# what is printed of the console.
script() {
    machine=$1
    cp "$2" "$work/script"
    shift 2
    add_files "$@"
    boot "$machine"
    # shellcheck disable=SC2154 # boot.sh
    tail -n +1 -f -s 0.2 --pid="$emulator" "$work/console" 2>/dev/null | sed -u -n "s/\r//g; $shown" &
    # A signal ends a wait, and no other command.
    wait "$!"
    result
}

# The suite on machine $1.
run() {
    machine=$1
    shift
    echo "machine=$machine sh /lab/checks.sh $*" > "$work/checks"
    shown='/^T|/p'
    case ${1:-} in
    debian)
        guest=$("$here/../qemu/lab.sh" prepare)
        in_root /src/tests/labs/xen/inside.sh python > "$work/python"
        set -- "$guest/vmlinuz" "$guest/initrd.gz" "$top/docs/examples/syscalls.py"
        ;;
    pv)
        guest=$("$here/../qemu/lab.sh" prepare)
        set -- "$lab/root/kernel/vmlinux" "$guest/initrd.gz" "$here/pv.sh"
        # In QEMU programs of dom0 crash beside a PV guest, whatever they do, if Xen uses XSAVE (docs/labs.md).
        xen_words="$xen_words xsave=0"
        ;;
    hvm)
        prepare_model
        in_root /src/tests/labs/xen/inside.sh model > "$work/python"
        set -- "$here/hvm.sh"
        ;;
    *) set -- ;;
    esac
    script "$machine" "$work/checks" "$here/checks.sh" "$here/ends.sh" "$here/walls.sh" "$@"
}

# The archive of the run: the script, what lib.sh names, and files by their paths on the host.
add_files() {
    mkdir "$work/files"
    ln "$lab/guest.elf" "$lab/target/debug/vmtree" "$lab/target/debug/vmtree-conformance" "$work/files/"
    cp "$here/lib.sh" "$work/script" "$@" "$work/files/"
    # shellcheck disable=SC2016 # the inner shell's words
    in_root sh -ec '/src/tests/labs/xen/inside.sh ours /lab/run/files/*' > "$work/ours"
    touch "$work/python"
    cat "$lab/dom0.cpio" "$work/python" "$work/ours" > "$work/initrd"
}

usage() {
    sed -n '2,25s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# All in one, so that nothing of this file is read any more once it runs.
main() {
    action=${1:-}
    [ $# = 0 ] || shift
    case $action in
    prepare)
        prepare
        echo "$lab"
        ;;
    build)
        prepare
        build
        echo "$lab/target/debug"
        ;;
    script)
        [ -f "${2:-}" ] || usage
        prepare
        build
        # shellcheck disable=SC2016 # sed's
        shown='/^LAB-UP/,$p'
        script "$@"
        ;;
    run)
        [ $# -ge 1 ] || usage
        prepare
        build
        run "$@"
        ;;
    shell)
        prepare
        build
        : > "$work/script"
        add_files
        shell
        ;;
    inside)
        [ $# -ge 1 ] || usage
        prepare
        in_root sh -ec 'cd /src && exec "$@"' sh "$@"
        ;;
    *) usage ;;
    esac
}

main "$@"
exit
