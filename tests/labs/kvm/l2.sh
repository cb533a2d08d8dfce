# shellcheck shell=sh disable=SC2034
# Guests of L1 and their mounts. $dir is the folder of the one that runs, $mnt the mountpoint.

mnt=/mnt/vm

# Waits until a command succeeds. $1: seconds.
await() {
    until_second=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt "$until_second" ] || return 1
        sleep 0.1
    done
}

# Starts a guest. $1: its name; the rest: arguments of QEMU.
l2_start() {
    dir=/run/$1
    shift
    mkdir -p "$dir"
    mkfifo "$dir/hmp.in" "$dir/hmp.out"
    # Kept open here, so that a write to a QEMU that has ended doesn't wait for a reader.
    exec 3<> "$dir/hmp.in"
    cat "$dir/hmp.out" > "$dir/hmp.log" &
    qemu-system-x86_64 -L /firmware -accel kvm -cpu host -m 256M -nodefaults -display none -no-reboot \
        -serial "file:$dir/serial" -qmp "unix:$dir/qmp,server=on,wait=off" \
        -chardev "pipe,id=hmp,path=$dir/hmp" -mon chardev=hmp,mode=readline "$@" 2> "$dir/stderr" &
    l2=$!
    await 60 prompt
}

prompt() {
    [ "$(tail -c 7 "$dir/hmp.log")" = '(qemu) ' ]
}

# An answer to the command sent after the first $1 bytes.
answered() {
    [ "$(wc -c < "$dir/hmp.log")" -gt "$1" ] && prompt
}

# A command of QEMU's own monitor; prints the answer, without the echo of the command.
hmp() {
    before=$(wc -c < "$dir/hmp.log")
    echo "$1" >&3
    await 30 answered "$before"
    tail -c "+$((before + 1))" "$dir/hmp.log" | tr -d '\r' | sed '1d;$d'
}

l2_quit() {
    echo quit >&3
    wait "$l2"
}
