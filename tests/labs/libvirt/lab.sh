#!/bin/sh
# A private libvirtd in FOLDER, as root and without systemd, with one small domain named vmtree-lab.
#   lab.sh start FOLDER [second]   starts both; with "second" the domain has a QMP socket beside libvirt's own, and
#                                  prints the path of that socket
#   lab.sh virsh FOLDER ARGS...    runs virsh against it
#   lab.sh stop FOLDER             ends both
set -eu
action=$1
folder=$2
shift 2
uri="qemu:///system?socket=$folder/run/libvirt-sock"
case $action in
start)
    mkdir -p "$folder/run" "$folder/etc" "$folder/lib" "$folder/cache" "$folder/log"
    printf 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\nremember_owner = 0\nnamespaces = []\nstdio_handler = "file"\n' \
        >"$folder/etc/qemu.conf"
    printf 'auth_unix_rw = "none"\n' >"$folder/etc/libvirtd.conf"
    # Debian's libvirtd wants this user even where its configuration names another.
    { cat /etc/passwd; echo 'libvirt-qemu:x:0:0::/:/bin/false'; } >"$folder/passwd"
    { cat /etc/group; echo 'libvirt-qemu:x:0:'; } >"$folder/group"
    mkdir -p /run/libvirt /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
    # In a mount namespace of its own, so that nothing of the system's libvirt is touched.
    # The inner shell is meant to expand it.
    # shellcheck disable=SC2016
    unshare -m sh -ec '
        cd "$1"
        mount --bind run /run/libvirt
        mount --bind etc /etc/libvirt
        mount --bind lib /var/lib/libvirt
        mount --bind cache /var/cache/libvirt
        mount --bind log /var/log/libvirt
        mount --bind passwd /etc/passwd
        mount --bind group /etc/group
        exec libvirtd --pid-file "$1/pid"
    ' sh "$folder" >"$folder/libvirtd.log" 2>&1 &
    for _ in $(seq 100); do
        virsh -c "$uri" list >/dev/null 2>&1 && break
        sleep 0.1
    done
    extra=
    if [ "${1:-}" = second ]; then
        extra="<qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:$folder/vm.qmp,server=on,wait=off'/></qemu:commandline>"
    fi
    cat >"$folder/domain.xml" <<XML
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vmtree-lab</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/></devices>
  $extra
</domain>
XML
    virsh -q -c "$uri" create "$folder/domain.xml" >&2
    echo "$folder/vm.qmp"
    ;;
virsh) virsh -q -c "$uri" "$@" ;;
stop)
    virsh -q -c "$uri" destroy vmtree-lab >&2 || true
    kill "$(cat "$folder/pid")"
    ;;
esac
