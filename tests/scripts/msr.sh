#!/bin/sh
# MSRs by dd and python, as of /dev/cpu/N/msr. $1: the mountpoint of a VM with MSRs.
set -eu
cd "$1"
efer=$(cat vcpu/0/regs/efer)
by_dd=$(dd if=vcpu/0/msr bs=8 count=1 skip=$((0xc0000080)) iflag=skip_bytes status=none | od -A n -t x8 | tr -d ' ')
[ "0x$by_dd" = "$efer" ] || { echo "EFER: 0x$by_dd, regs/efer: $efer" >&2; exit 1; }

echo pause > ctl
lstar=$(cat vcpu/0/regs/lstar)
python3 - <<'PYTHON'
import os, struct
msr = os.open("vcpu/0/msr", os.O_RDWR)
LSTAR = 0xC0000082
assert os.pwrite(msr, struct.pack("<Q", 0xFFFFFFFF81000000), LSTAR) == 8
assert struct.unpack("<Q", os.pread(msr, 8, LSTAR))[0] == 0xFFFFFFFF81000000
PYTHON
[ "$(cat vcpu/0/regs/lstar)" = 0xffffffff81000000 ]
echo "$lstar" > vcpu/0/regs/lstar
echo resume > ctl
