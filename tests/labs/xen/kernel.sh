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
'
chroot "$1" sh -s /kernel/vmlinuz < "$(dirname "$0")/unpack.sh" > "$1/kernel/vmlinux"
rm "$1/kernel/vmlinuz"
