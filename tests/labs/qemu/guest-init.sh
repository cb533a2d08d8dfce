#!/bin/sh
# Init of the lab's guest: keeps a string in the shell's memory and says it each second, or sooner if it changed.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
# Put together from parts, so that the whole is found where the variable is kept, and not in this script.
a=VMTREE
b=SECRET
kept="$a-$b-0123456789abcdef"
while :; do
    echo "guest says: $kept"
    sleep 1
done
