# shellcheck shell=sh disable=SC2034,SC2154
# For lab.sh: the machines that Xen and dom0 are booted on. $work is the folder of the run, with initrd; the console of Xen
# and dom0 goes to $work/console.

# altp2m is off by default; neither machine has C-states that Xen likes. The rest is for speed: no defences, and none of the
# kernel's tests of its own ciphers and certificates, which would take half of the start.
xen_words="console=com1 com1=115200,8n1 dom0_max_vcpus=1 loglvl=info guest_loglvl=warning cpuidle=0 altp2m=1 \
spec-ctrl=no xpti=no pv-l1tf=no ${VMTREE_LAB_XEN:-}"
linux_words="console=hvc0 quiet nokaslr panic=1 rodata=off mitigations=off init_on_alloc=0 cryptomgr.notests=1 \
initcall_blacklist=crypto_kdf108_init,jent_mod_init,load_system_certificate_list,init_kprobe_trace ${VMTREE_LAB_LINUX:-}"

# Starts machine $1.
boot() {
    : > "$work/console"
    case $1 in
    qemu) in_qemu -serial "file:$work/console" -monitor none </dev/null >"$work/stderr" 2>&1 & ;;
    bochs) in_bochs </dev/null >"$work/stderr" 2>&1 & ;;
    *) echo "$1: the machine is bochs or qemu" >&2 && return 2 ;;
    esac
    emulator=$!
    # It ends with this script, whatever ends it; timeout ends it in any case.
    trap 'kill "$emulator" 2>/dev/null || true; rm -rf "$work"' EXIT
}

# The exit code of dom0's script, or what was said last where it came to none.
result() {
    cp "$work/console" "$lab/log"
    code=$(tr -d '\r' < "$work/console" | sed -n 's/^LAB-EXIT rc=\([0-9]*\).*/\1/p')
    if [ -z "$code" ]; then
        echo "dom0 did not come to its end (it has $seconds s); the last that was said:" >&2
        tail -n 20 "$work/console" "$work/stderr" >&2
        return 124
    fi
    return "$code"
}

# QEMU 7.2 gives Xen's SVM trouble with SMAP, and each with RDTSCP.
in_qemu() {
    # Modules stand behind commas: one in a module's words is two.
    words=$(echo "$linux_words" | sed 's/,/,,/g')
    exec timeout -k 5 "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu EPYC,+svm,+npt,-smap,-rdtscp \
        -smp 2 -m 2G -nodefaults -no-reboot -display none "$@" -kernel "$lab/root/kernel/xen" \
        -append "dom0_mem=512M,max:512M $xen_words" -initrd "$lab/root/kernel/vmlinux $words,$work/initrd"
}

shell() {
    seconds=0 linux_words="$linux_words lab_shell"
    in_qemu -serial mon:stdio
}

# Bochs's exit code tells nothing: it ends by an error when the machine goes off. Its display is a port: without a network it
# is nobody's.
in_bochs() {
    mkdir -p "$work/iso/boot/grub"
    cp "$lab/root/kernel/xen" "$lab/root/kernel/vmlinux" "$work/initrd" "$work/iso/boot/"
    cat > "$work/iso/boot/grub/grub.cfg" <<CFG
serial --unit=0 --speed=115200
terminal_output serial
multiboot /boot/xen dom0_mem=400M,max:400M apicv=0 $xen_words
module /boot/vmlinux $linux_words
module --nounzip /boot/initrd
boot
CFG
    in_root grub-mkrescue -d /usr/lib/grub/i386-pc -o /lab/run/image /lab/run/iso --locales= --themes= --fonts= \
        --install-modules='normal iso9660 biosdisk multiboot serial boot'
    apart=-mn
    exec_in_root timeout -k 5 "$seconds" bochs -q -f /src/tests/labs/xen/bochsrc
}
