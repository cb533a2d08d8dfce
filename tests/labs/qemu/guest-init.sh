#!/bin/sh
# Init of the lab's guest: keeps a string in the shell's memory and says it each second. With the argument "probe" it
# first says where its kernel takes system calls and what it wrote to MSRs, and runs a process that says what it does
# (probe.c), which goes on beside it.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
if [ "${1:-}" = probe ]; then
    /bin/probe &
    grep ' entry_SYSCALL_64$' /proc/kallsyms
    for _ in 1 2 3 4 5 6 7 8; do /bin/true; done
    # The MSRs that the kernel wrote, if it was told to trace that: trace_event=msr:write_msr.
    mount -t tracefs trace /sys/kernel/tracing
    grep -o 'write_msr: .*' /sys/kernel/tracing/trace
    echo "guest has told all"
fi
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
