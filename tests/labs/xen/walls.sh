# shellcheck shell=dash disable=SC2154
# For checks.sh: writes behind walls that Xen's emulator can't drop. XSAVE it can't do; and on a view that shows other code and
# data it would take the guest's own.

# Where the conformance guest has nothing; it reads, writes and executes memory below 1 MiB at its own address.
WALL_CODE=$((0xc1000))
WALL_RESULTS=$((0xc8000))
WALL_DATA=$((0xc3000))
WALL_READ=$((0xc6000))

# In the guest's kernel: CR4.OSXSAVE on; at 0xc3040 XSAVE, LOCK XADD and ADD, and at 0xc3fc0 XSAVE into the next page too; what
# XADD has read and what is at 0xc6000 to memory, then 0x600d; a loop with PAUSE, as interrupts are off.
wall_code() {
    printf '\017\040\340\110\017\272\350\022\017\042\340\277\100\060\014\000\270\003\000\000\000\061\322\017\256\047'
    printf '\271\021\000\000\000\360\110\017\301\017\110\001\017\277\300\077\014\000\017\256\047'
    printf '\110\213\064\045\000\140\014\000\110\211\014\045\000\200\014\000\110\211\064\045\010\200\014\000'
    printf '\110\307\004\045\020\200\014\000\015\140\000\000\363\220\353\374'
}

# Two pages of a letter, into a file.
letters() {
    dd if=/dev/zero bs=4096 count=2 2>/dev/null | tr '\0' "$1"
}

into() {
    dd of="$1" bs=4096 seek=$(($2 / 4096)) conv=notrunc 2>/dev/null
}

pages() {
    dd if="$1" bs=4096 skip=$(($2 / 4096)) count=2 2>/dev/null
}

wall_word() {
    dd if="$mnt/mem" bs=8 skip=$(($1 / 8)) count=1 2>/dev/null | od -A n -t x8 | tr -d ' '
}

wall_ends() {
    [ "$(wall_word $((WALL_RESULTS + 16)))" = 000000000000600d ]
}

wall_regs() {
    grep -E '^(r[a-z0-9]+|cr4)=0x' "$mnt/vcpu/0/regs/all" | tr '\n' ' '
}

# Has the guest's kernel do it, with $1 while it goes on; it is then where it was before.
wall_run() {
    letters '\0' | into "$mnt/mem" $WALL_RESULTS
    until echo pause > "$mnt/ctl" && grep -q '^sel=0x00[0-9a-f][08] ' "$mnt/vcpu/0/regs/cs"; do echo resume > "$mnt/ctl"; done
    before=$(wall_regs)
    echo "rip=$WALL_CODE rflags=2" > "$mnt/vcpu/0/regs/all" || return 1
    echo resume > "$mnt/ctl"
    $1
    await 10 wall_ends
    ended=$?
    echo pause > "$mnt/ctl"
    sed -n 's/^rip=/at rip /p' "$mnt/vcpu/0/regs/all"
    echo "$before" > "$mnt/vcpu/0/regs/all" || ended=1
    echo resume > "$mnt/ctl"
    echo "XADD read $(wall_word $WALL_RESULTS), then $(wall_word $((WALL_RESULTS + 8)))"
    return $ended
}

# What the two pages hold, and what XADD and the read got.
wall_left() {
    letters "$2" > /run/letters
    pages "$1" $WALL_DATA | cmp - /run/letters && [ "$(wall_word $WALL_RESULTS)" = "$3" ] &&
        [ "$(wall_word $((WALL_RESULTS + 8)))" = "$4" ]
}

# On the default view: the wall is around the first page alone, and of an instruction that writes to both nothing is written.
walls_of_any_instruction() {
    wall_code | into "$mnt/mem" $WALL_CODE
    letters a | into "$mnt/mem" $WALL_DATA
    letters r | into "$mnt/mem" $WALL_READ
    echo '0xc3000-0xc4000 r-- deny' > "$mnt/views/0/access" || return 1
    wall_run true && wall_left "$mnt/mem" a 6161616161616161 7272727272727272
    behind=$?
    # That each fetch of the same instructions is told of opens no wall.
    exec 4< "$mnt/events/slat,gpa=0xc1000-0xc2000,access=x"
    wall_run true && wall_left "$mnt/mem" a 6161616161616161 7272727272727272 || behind=1
    exec 4<&-
    grep '^slat ' "$mnt/events/stats"
    echo reset > "$mnt/views/0/access"
    # Without it they write.
    wall_run true && ! wall_left "$mnt/mem" a 6161616161616161 7272727272727272 || return 1
    return $behind
}

value_of_a_read() {
    record=$(dd bs=65536 count=1 <&3 2>/dev/null)
    echo "$record"
    record=${record#seq=}
    echo "${record%% *} value=0x77" >&3
}

# On a view with copies of the code and of the first page; the guest's own frames have no code, and other data.
walls_on_a_view() {
    mkdir "$mnt/views/dry" && echo '0xc1000 copy' > "$mnt/views/dry/remap" && echo '0xc3000 copy' > "$mnt/views/dry/remap" || return 1
    wall_code | into "$mnt/views/dry/mem" $WALL_CODE
    letters '\0' | into "$mnt/mem" $WALL_CODE
    letters b | into "$mnt/mem" $WALL_DATA
    letters c | into "$mnt/views/dry/mem" $WALL_DATA
    echo '0xc3000-0xc4000 r-- deny' > "$mnt/views/dry/access" && echo dry > "$mnt/view" || return 1
    exec 3<> "$mnt/events/slat,gpa=0xc6000-0xc7000,access=r"
    wall_run value_of_a_read && wall_left "$mnt/views/dry/mem" c 6363636363636363 0000000000000077
    behind=$?
    exec 3>&-
    letters b > /run/letters
    pages "$mnt/mem" $WALL_DATA | cmp -n 4096 - /run/letters || behind=1
    echo 0 > "$mnt/view"
    echo reset > "$mnt/views/dry/access"
    rmdir "$mnt/views/dry" || behind=1
    letters '\0' | into "$mnt/mem" $WALL_CODE
    moves && return $behind
}

walls() {
    if grep -qx 'event slat w yes' "$mnt/capabilities"; then
        check walls-of-any-instruction walls_of_any_instruction
        check walls-on-a-view walls_on_a_view
    else
        tell walls absent "$(sed -n 's/^event slat w no: //p' "$mnt/capabilities")"
    fi
}
