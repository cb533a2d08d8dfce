# shellcheck shell=sh disable=SC2034,SC2154
# For lab.sh: the machines that Xen and dom0 are booted on. $work is the folder of the run, with initrd; the console of Xen
# and dom0 goes to $work/console.

# altp2m is off by default; cpuidle= because neither machine has C-states that Xen likes.
xen_words='console=com1 com1=115200,8n1 dom0_max_vcpus=1 loglvl=info guest_loglvl=warning cpuidle=0 altp2m=1'
linux_words='console=hvc0 quiet nokaslr panic=1'

# Starts machine $1 with the words $2 for dom0's kernel.
boot() {
    : > "$work/console"
    case $1 in
    qemu) in_qemu "$2" -serial "file:$work/console" -monitor none </dev/null >"$work/stderr" 2>&1 & ;;
    bochs) in_bochs "$2" </dev/null >"$work/stderr" 2>&1 & ;;
    *) echo "$1: the machine is bochs or qemu" >&2 && return 2 ;;
    esac
    emulator=$!
    # It ends with this script, whatever ends it; timeout ends it in any case.
    trap 'kill "$emulator" 2>/dev/null || true; rm -rf "$work"' EXIT
}

# What the console says, as it comes, from the first line on that begins as $1.
follow() {
    tail -n +1 -f -s 0.2 --pid="$emulator" "$work/console" 2>/dev/null | tr -d '\r' | sed -u -n "/^$1/,\$p"
}

# The exit code of dom0's script, or what was said last where it came to none.
result() {
    cp "$work/console" "$lab/log"
    code=$(tr -d '\r' < "$work/console" | sed -n 's/^LAB-EXIT rc=\([0-9]*\).*/\1/p')
    if [ -z "$code" ]; then
        echo "dom0 did not come to its end within $seconds s; the last that was said:" >&2
        tail -n 20 "$work/console" "$work/stderr" >&2
        return 124
    fi
    return "$code"
}

# QEMU 7.2 gives Xen's SVM trouble with SMAP, and each with RDTSCP.
in_qemu() {
    words="$linux_words $1"
    shift
    exec timeout -k 5 "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu EPYC,+svm,+npt,-smap,-rdtscp \
        -smp 2 -m 2G -nodefaults -no-reboot -display none "$@" -kernel "$lab/root/kernel/xen" \
        -append "dom0_mem=512M,max:512M $xen_words" -initrd "$lab/root/kernel/vmlinux $words,$work/initrd"
}

shell() {
    seconds=0 in_qemu lab_shell -serial mon:stdio
}

# Bochs's exit code tells nothing: it ends by an error when the machine goes off. Its display is a port: without a network it
# is nobody's.
in_bochs() {
    mkdir -p "$work/iso/boot/grub"
    cp "$lab/root/kernel/xen" "$lab/root/kernel/vmlinuz" "$work/initrd" "$work/iso/boot/"
    cat > "$work/iso/boot/grub/grub.cfg" <<CFG
serial --unit=0 --speed=115200
terminal_output serial
multiboot /boot/xen dom0_mem=400M,max:400M apicv=0 $xen_words
module /boot/vmlinuz $linux_words $1
module --nounzip /boot/initrd
boot
CFG
    in_root grub-mkrescue -d /usr/lib/grub/i386-pc -o /lab/run/image /lab/run/iso --locales= --themes= --fonts= \
        --install-modules='normal iso9660 biosdisk multiboot serial boot'
    apart=-mn
    exec_in_root timeout -k 5 "$seconds" bochs -q -f /src/tests/labs/xen/bochsrc
}
