#!/bin/sh
# What lab.sh does inside its Debian root: the archives that dom0 is booted with, not compressed, because emulated machines
# unpack slowly. /src is our source, /lab the lab's folder.
#
#   inside.sh dom0            the part that stays: busybox, Xen's tools, modules, init; to /lab/dom0.cpio
#   inside.sh python          Python, to standard output
#   inside.sh model           Xen's QEMU, unpacked in /lab/model, to standard output
#   inside.sh ours FILE...    FILEs to dom0's /lab, programs among them with their libraries; to standard output
set -eu

# The libraries that a program loads; of any other file none.
libraries() {
    ldd "$1" 2>/dev/null | grep -oE '/[^ ]+' || true
}

# Copies files of this root to the same paths below $1, with their libraries.
with_libraries() {
    to=$1
    shift
    for file in "$@"; do
        { echo "$file"; libraries "$file"; } | while read -r part; do
            [ -e "$to$part" ] || { mkdir -p "$to${part%/*}" && cp -L "$part" "$to$part"; }
        done
    done
}

# A folder in which /bin and the others lead into /usr, as in every Debian.
merged() {
    mkdir -p "$1/usr"
    for name in bin sbin lib lib64; do
        mkdir -p "$1/usr/$name"
        ln -s "usr/$name" "$1/$name"
    done
}

archive() {
    (cd "$1" && find . | cpio -o -H newc --quiet)
}

dom0() {
    root=$(mktemp -d)
    merged "$root"
    (cd "$root" && mkdir -p proc sys dev run tmp root mnt/vm lab modules etc/xen var/lib/xenstored var/lib/xen \
        var/log/xen/console && ln -s /run /run/lock var/)
    tools=$(echo /usr/lib/xen-[0-9]*/bin)
    with_libraries "$root" /usr/bin/busybox /usr/bin/strace /usr/bin/xenstore-ls
    for tool in xl xenstored xenconsoled xen-init-dom0 xenconsole xenctx xen-hvmctx xen-cpuid libxl-save-helper; do
        with_libraries "$root" "$tools/$tool"
        ln -s "$tools/$tool" "$root/usr/bin/$tool"
    done
    for name in $(busybox --list); do [ -e "$root/usr/bin/$name" ] || ln -s busybox "$root/usr/bin/$name"; done
    for name in list read write rm; do ln -s xenstore-ls "$root/usr/bin/xenstore-$name"; done
    # pthread_cancel loads it by name.
    with_libraries "$root" "$(ldconfig -p | sed -n 's/.*libgcc_s\.so\.1 .* => //p')"
    cp /kernel/*.ko "$root/modules/"
    echo 'autoballoon="off"' > "$root/etc/xen/xl.conf"
    echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
    cp /src/tests/labs/xen/dom0-init.sh "$root/init"
    chmod 755 "$root" "$root/init"
    archive "$root" > /lab/dom0.cpio.new
    mv /lab/dom0.cpio.new /lab/dom0.cpio
    rm -r "$root"
}

# Python, with what of its library it starts with.
python() {
    root=$(mktemp -d)
    merged "$root"
    program=$(readlink -f /usr/bin/python3)
    library=$(python3 -c 'import os; print(os.path.dirname(os.__file__))')
    with_libraries "$root" "$program" "$library/os.py"
    for name in __init__ aliases ascii latin_1 utf_8; do with_libraries "$root" "$library/encodings/$name.py"; done
    ln -s "$program" "$root/usr/bin/python3"
    chmod 755 "$root"
    archive "$root"
    rm -r "$root"
}

# The device model of HVM domains, with the libraries that came with it.
model() {
    root=$(mktemp -d)
    merged "$root"
    program=/lab/model/usr/libexec/xen-qemu-system-i386
    {
        echo "$program"
        # It starts with no screen, and reads this all the same.
        find /lab/model/usr/share/qemu/keymaps -name en-us -o -name common -o -name modifiers
        LD_LIBRARY_PATH=$(dirname "$(find /lab/model -name 'libc.so.6')") libraries "$program"
    } | while read -r part; do
        to=$root${part#/lab/model}
        mkdir -p "${to%/*}"
        cp -L "$part" "$to"
    done
    chmod 755 "$root"
    archive "$root"
    rm -r "$root"
}

ours() {
    root=$(mktemp -d)
    merged "$root"
    mkdir "$root/lab"
    for file in "$@"; do
        name=${file##*/}
        cp -L "$file" "$root/lab/$name"
        libraries "$file" > "$root/needed"
        [ ! -s "$root/needed" ] || strip "$root/lab/$name"
        while read -r library; do with_libraries "$root" "$library"; done < "$root/needed"
    done
    rm -f "$root/needed"
    chmod 755 "$root"
    archive "$root"
    rm -r "$root"
}

action=$1
shift
"$action" "$@"
