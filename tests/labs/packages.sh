# shellcheck shell=sh disable=SC2034
# For the labs' scripts: files of Debian packages, without installing any. Needs apt and dpkg-deb.

# apt-get download, with the lists fetched first where they are missing or too old to name a file that still exists.
download() {
    apt-get download "$@" >&2 || { apt-get update >&2 && apt-get download "$@" >&2; }
}

kernel_package() {
    apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# Unpacks Debian's cloud kernel into ./kernel and its static busybox into ./tools; $busybox is then its path.
kernel_and_busybox() {
    kernel=$(kernel_package)
    if [ -z "$kernel" ]; then
        apt-get update >&2
        kernel=$(kernel_package)
    fi
    download "${kernel:?no Debian cloud kernel is known to apt}" busybox-static
    dpkg-deb -x "$(echo linux-image-*.deb)" kernel
    dpkg-deb -x "$(echo busybox-static_*.deb)" tools
    busybox=$(find "$PWD/tools" -path '*/bin/busybox' -type f)
}

# Debian's mirror, as this machine's own release has it.
mirror() {
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # apt fills these in, not the shell.
    # shellcheck disable=SC2016
    found=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        sed -n "s/ $codename\$//p" | head -n 1)
    echo "${found:?no Debian mirror is in the sources of apt}"
}
