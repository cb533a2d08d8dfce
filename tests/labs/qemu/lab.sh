#!/bin/sh
# A real Debian guest for QEMU: Debian's cloud kernel and a static busybox that keeps a string in memory and says it.
#
#   tests/labs/qemu/lab.sh prepare            fetch and build once; prints the folder with vmlinuz and initrd.gz
#   tests/labs/qemu/lab.sh run [QEMU ARGS]    start it: serial console here, QMP at FOLDER/qmp; Ctrl-A X ends it
#
# Its kernel passes what stands after "--" on its command line to init: see guest-init.sh.
# Needs apt (packages are downloaded, not installed), dpkg-deb and a C compiler. VMTREE_LAB names the folder to keep it in.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
lab=${VMTREE_LAB:-$here/../../../target/lab}/qemu
mkdir -p "$lab"
lab=$(cd "$lab" && pwd)

# shellcheck source=tests/labs/packages.sh
. "$here/../packages.sh"

prepare() {
    if [ -f "$lab/vmlinuz" ] && [ -f "$lab/initrd.gz" ] &&
        [ -z "$(find "$here/lab.sh" "$here/guest-init.sh" "$here/probe.c" -newer "$lab/initrd.gz")" ]; then
        return
    fi
    work=$(mktemp -d "$lab/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM
    cd "$work"
    kernel_and_busybox
    mkdir -p root/bin root/proc root/sys root/dev
    cp "$busybox" root/bin/busybox
    cp "$here/guest-init.sh" root/init
    chmod 755 root/init
    "${CC:-cc}" -static -nostdlib -O1 -fno-stack-protector -o root/bin/probe "$here/probe.c"
    for applet in sh mount mkfifo grep true; do ln -s busybox "root/bin/$applet"; done
    (cd root && find . | "$busybox" cpio -o -H newc 2>/dev/null) | gzip -1 > initrd.gz
    # Two that prepare at once each move whole files into place.
    mv kernel/boot/vmlinuz-* "$lab/vmlinuz"
    mv initrd.gz "$lab/initrd.gz"
    cd "$lab"
    rm -rf "$work"
}

case ${1:-} in
prepare)
    prepare
    echo "$lab"
    ;;
run)
    shift
    prepare
    echo "QMP: $lab/qmp   (vmtree mount qemu:$lab/qmp MOUNTPOINT)" >&2
    exec qemu-system-x86_64 -name vmtree-lab -m 512M -nographic -no-reboot \
        -object memory-backend-memfd,id=ram,size=512M,share=on -machine pc,memory-backend=ram \
        -kernel "$lab/vmlinuz" -initrd "$lab/initrd.gz" -append 'console=ttyS0 quiet panic=-1' \
        -qmp "unix:$lab/qmp,server=on,wait=off" "$@"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
