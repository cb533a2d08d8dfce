#!/bin/sh
# Init of the lab's guest: keeps a string in the shell's memory and says it each second.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
# Put together from parts, so that the whole is found where the variable is kept, and not in this script.
a=VMTREE
b=SECRET
kept="$a-$b-0123456789abcdef"
# A second's wait without a process of its own: each fork would move the shell's pages to other frames.
mkfifo /never
exec 3<>/never
while :; do
    echo "guest says: $kept"
    # busybox has it.
    # shellcheck disable=SC3045
    read -r -t 1 _ <&3
done
