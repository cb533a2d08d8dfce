#!/bin/busybox sh
# shellcheck shell=dash
# Init of dom0: modules, Xen's daemons, then /lab/script, whose exit code is told to the host. Then the machine goes off.
export PATH=/lab:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
for folder in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $folder; done
mkdir -p /run/lock /run/xen /run/xenstored
for module in /modules/*.ko; do insmod "$module"; done
mount -t xenfs xenfs /proc/xen
xenstored --pid-file /run/xenstored.pid
tries=0
until xenstore-read / >/dev/null 2>&1 || [ $tries = 100 ]; do
    tries=$((tries + 1))
    usleep 100000
done
xen-init-dom0 >/dev/null
xenconsoled --log=guest --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid
echo "LAB-UP $(cut -d ' ' -f 1 /proc/uptime) s after dom0's start, $(cat /proc/xen/capabilities)"

if grep -qw lab_shell /proc/cmdline; then
    setsid cttyhack sh
else
    cd /lab || poweroff -f
    sh /lab/script
    echo "LAB-EXIT rc=$? $(cut -d ' ' -f 1 /proc/uptime) s"
fi
# The console is written out by Xen itself.
sleep 0.2
poweroff -f
