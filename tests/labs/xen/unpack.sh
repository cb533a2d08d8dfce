#!/bin/sh
# unpack.sh BZIMAGE: the kernel in it, an ELF file that nobody has to unpack any more, to standard output. Its place is told in
# the header (Linux, Documentation/arch/x86/boot.rst): sectors of setup at 497, offset and length of the payload at 584 and 588.
set -eu
image=$1

number() {
    od -A n -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Behind the compressed bytes are four more, the size.
tail -c +$((512 * ($(number 497 1) + 1) + $(number 584 4) + 1)) "$image" | head -c $(($(number 588 4) - 4)) > "$folder/packed"
case $(od -A n -t x1 -N 4 "$folder/packed" | tr -d ' ') in
28b52ffd) zstd -q -d -c "$folder/packed" ;;
*) xz -d -c < "$folder/packed" ;;
esac > "$folder/kernel"
strip -g "$folder/kernel"
cat "$folder/kernel"
