#!/bin/sh
# Hook of mmdebstrap for the root $1: of Debian's kernel, what dom0 needs is put into /kernel (the cloud kernel can be
# no dom0). The package is not installed: its size, and the initramfs that it makes, would cost more than all the rest.
set -eu

# The words are expanded in the root.
# shellcheck disable=SC2016
chroot "$1" sh -ec '
    mkdir /kernel
    cd /kernel
    apt-get download -o APT::Sandbox::User=root "$(apt-cache depends linux-image-amd64 | sed -n "s/^ *Depends: \(linux-image-[0-9].*\)/\1/p")"
    dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x --wildcards --transform "s,.*/,," "*/boot/vmlinuz-*" \
        "*/xen-privcmd.ko*" "*/xenfs.ko*" "*/xen-evtchn.ko*" "*/xen-gntdev.ko*" "*/xen-gntalloc.ko*"
    mv vmlinuz-* vmlinuz
    rm linux-image-*.deb
    # Without their signatures, which would be checked, and without BTF.
    for module in *.ko.xz; do
        xz -d "$module"
        strip -g -R .BTF -R .BTF.base "${module%.xz}"
    done
    # The kernel itself as an ELF file, which nobody has to unpack: its place in the bzImage is told in the header
    # (Linux, Documentation/arch/x86/boot.rst).
    number() { od -A n -t "u$2" -j "$1" -N "$2" vmlinuz | tr -d " "; }
    start=$((512 * ($(number 497 1) + 1) + $(number 584 4)))
    # Behind the compressed bytes are four more, the size.
    tail -c +$((start + 1)) vmlinuz | head -c $(($(number 588 4) - 4)) > payload
    case $(od -A n -t x1 -N 4 payload | tr -d " ") in
    28b52ffd) zstd -q -d -o vmlinux payload ;;
    *) xz -d -c < payload > vmlinux ;;
    esac
    strip -g vmlinux
    rm payload vmlinuz
'
