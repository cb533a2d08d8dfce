#!/usr/bin/env bash
# Builds this library into a folder of its own: FOLDER/lib/libkvmi.so, FOLDER/include, FOLDER/lib/pkgconfig. Nothing is installed.
set -euo pipefail
from=$(cd "$(dirname "$0")" && pwd)
to=${1:?usage: build.sh FOLDER}
mkdir -p "$to/lib/pkgconfig" "$to/include"
cp "$from/libkvmi.h" "$from/kvmi_wire.h" "$to/include/"
"${CC:-cc}" -std=gnu11 -O2 -g -Wall -Wextra -Werror -fPIC -shared -fvisibility=default -Wl,-soname,libkvmi.so \
    -o "$to/lib/libkvmi.so" "$from"/*.c -pthread
cat >"$to/lib/pkgconfig/libkvmi.pc" <<END
Name: libkvmi
Description: the C interface of libkvmi, for vmtree's lab
Version: 1.1.0
Libs: -L$to/lib -lkvmi
Cflags: -I$to/include
END
