#!/usr/bin/env bash
# The kvmi lab: a libkvmi of our own, vmtree with the feature kvmi, and the built-in machine behind KVMI's socket.
#     lab.sh run [TEST...]       builds all and runs tests/kvmi.rs (tests whose names have TEST)
#     lab.sh bench               the benchmark of ratios, an optimized build
#     lab.sh shell               mounts a machine at FOLDER/mnt and gives a shell there
#     lab.sh env                 prints what a shell needs to build and run with the lab's libkvmi
# Everything is in target/lab/kvmi, or the folder that VMTREE_LAB names; nothing is installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
lab=${VMTREE_LAB:-$root/target/lab}/kvmi
mkdir -p "$lab"

for tool in cc pkg-config; do
    command -v "$tool" >/dev/null || { echo "lab.sh: $tool is missing: apt-get install gcc pkg-config libclang-dev" >&2; exit 1; }
done

"$here/libkvmi/build.sh" "$lab/libkvmi"
export PKG_CONFIG_PATH=$lab/libkvmi/lib/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
export LD_LIBRARY_PATH=$lab/libkvmi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# docs/kvmi.md says what for.
flex="-D_LINUX_STDDEF_H '-D__DECLARE_FLEX_ARRAY(T,N)=T N[0]'"
include=$(cc -print-file-name=include)
export BINDGEN_EXTRA_CLANG_ARGS="-I$include $flex"
# Another folder: what is built here starts only where libkvmi is.
export CARGO_TARGET_DIR=${VMTREE_KVMI_TARGET:-$lab/build}
# A peer that says nothing is given up after 5 seconds instead of 15.
export VMTREE_KVMI_PATIENCE=${VMTREE_KVMI_PATIENCE:-5000}

cd "$root"
case ${1:-} in
run)
    shift
    cargo build -q -p vmtree-kvmi-endpoint
    cargo test -q -p vmtree-kvmi --features libkvmi
    cargo test --features kvmi --test kvmi -- --nocapture --test-threads=1 "$@"
    ;;
bench)
    cargo build -q --release -p vmtree-kvmi-endpoint
    cargo bench --features kvmi --bench kvmi
    ;;
shell)
    cargo build -q -p vmtree-kvmi-endpoint
    cargo build -q --features kvmi
    bin=$CARGO_TARGET_DIR/debug
    mkdir -p "$lab/mnt"
    "$bin/vmtree-kvmi-endpoint" "$lab/introspector" vcpus=2 lab </dev/null 2>"$lab/endpoint.log" &
    endpoint=$!
    trap '"$bin/vmtree" umount "$lab/mnt" || true; kill $endpoint' EXIT
    "$bin/vmtree" mount "kvmi:$lab/introspector" "$lab/mnt"
    (cd "$lab/mnt" && "${SHELL:-sh}") || true
    ;;
env)
    for name in PKG_CONFIG_PATH LD_LIBRARY_PATH BINDGEN_EXTRA_CLANG_ARGS CARGO_TARGET_DIR VMTREE_KVMI_PATIENCE; do
        printf 'export %s=%q\n' "$name" "${!name}"
    done
    ;;
*)
    sed -n '2,7s/^# \?//p' "$0"
    exit 2
    ;;
esac
