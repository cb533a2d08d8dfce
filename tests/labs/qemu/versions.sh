#!/bin/sh
# QEMUs of other Debian releases than this machine's, and our tests of QEMU against them:
#
#   tests/labs/qemu/versions.sh prepare 10|11         fetch once; prints the folder whose bin/ is to stand first in PATH
#   tests/labs/qemu/versions.sh run 10|11 [SUITE...]  run our tests with it, or those of SUITES (see `suite` below)
#
# 10 is that of the backports to Debian 12, 11 that of Debian testing. Nothing is installed: packages are fetched from the
# mirror in this machine's apt sources and unpacked. Needs root, apt and dpkg-deb, and cargo for `run`.
# VMTREE_LAB names the folder to keep them in.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)

# shellcheck source=tests/labs/packages.sh
. "$here/../packages.sh"

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

case ${2:-} in
10) suites='bookworm bookworm-backports' ;;
11) suites=testing ;;
*) usage ;;
esac
major=$2
lab=${VMTREE_LAB:-$top/target/lab}
mkdir -p "$lab"
lab=$(cd "$lab" && pwd)
folder=$lab/qemu-$major

# apt with nothing of this machine's but its mirror and its keys: its lists, cache and state are below ./apt, and no
# package counts as installed. A mirror that stands still has Release files that look expired.
private_apt() {
    apt-get -q -o Dir::State="$work/apt/state" -o Dir::State::status="$work/apt/status" \
        -o Dir::Cache="$work/apt/cache" -o Dir::Etc::sourcelist="$work/apt/sources.list" \
        -o Dir::Etc::sourceparts=- -o Dir::Etc::preferences=- -o Dir::Etc::preferencesparts=- \
        -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root \
        -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::Retries=5 "$@" >&2
}

# QEMU with the libraries and firmware that it depends on.
fetch() {
    mkdir -p apt/state/lists/partial apt/cache/archives/partial
    : > apt/status
    from=$(mirror)
    for suite in $suites; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main"
    done > apt/sources.list
    private_apt update
    private_apt -y --download-only --no-install-recommends --target-release "${suites##* }" \
        install qemu-system-x86 libc6 seabios
}

# /lib and /lib64 are links into /usr in every Debian that we use; packages may still name files by them.
unpack() {
    mkdir -p root/usr/lib root/usr/lib64 root/usr/bin root/usr/sbin bin
    for name in lib lib64 bin sbin; do ln -s "usr/$name" "root/$name"; done
    for package in apt/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C root --keep-directory-symlink
    done
}

# Starts it with a /usr of its own, so that it finds its libraries, modules and firmware: it stays the process that was
# started, under its own name, and sees all other files where they are.
starter() {
    cat <<'SH'
#!/bin/sh
root=$(cd "$(dirname "$0")/../root" && pwd)
exec unshare -m sh -ec 'mount --bind "$0/usr" /usr && exec /usr/bin/qemu-system-x86_64 "$@"' "$root" "$@"
SH
}

prepare() {
    [ -f "$folder/version" ] && return
    work=$(mktemp -d "$lab/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM HUP
    cd "$work"
    fetch
    unpack
    starter > bin/qemu-system-x86_64
    chmod 755 . bin/qemu-system-x86_64
    bin/qemu-system-x86_64 --version | head -n 1 > version
    if ! grep -q " version $major\." version; then
        echo "${suites##* } of Debian has no QEMU $major but '$(cat version)'" >&2
        exit 1
    fi
    rm -r apt
    # Two that prepare at once: the second finds the first one's, whole.
    mv -T "$work" "$folder" || [ -f "$folder/version" ]
    cd "$lab"
}

suite() {
    case $1 in
    # Its unit tests start no QEMU.
    driver) "${CARGO:-cargo}" test -p vmtree-qemu --test '*' ;;
    conformance) "${CARGO:-cargo}" test --test conformance qemu_ ;;
    events)
        suite plugin
        "${CARGO:-cargo}" test --test qemu_events --test qemu_debian --test trace
        "${CARGO:-cargo}" test --test conformance qemu_with_the_plugin
        ;;
    plugin)
        "${CARGO:-cargo}" build -p vmtree-qemu-plugin
        "${CARGO:-cargo}" test -p vmtree-qemu-plugin --test qemu
        ;;
    mounts) "${CARGO:-cargo}" test --test qemu --test qemu_pause ;;
    *) echo "there is no suite '$1': driver, conformance, events, plugin, mounts" >&2 && exit 2 ;;
    esac
}

case $1 in
prepare)
    prepare
    echo "$folder"
    ;;
run)
    shift 2
    prepare
    export PATH="$folder/bin:$PATH"
    qemu-system-x86_64 --version | head -n 1
    cd "$top"
    [ $# -gt 0 ] || set -- conformance driver events mounts
    for name; do suite "$name"; done
    ;;
*) usage ;;
esac
