"""pread and pwrite of mem, mmap of ram/*. Arguments: the mountpoint of emu:ram=64M."""
import errno
import mmap
import os
import sys
import time

root = sys.argv[1]
HIGH = 4 << 30

mem = os.open(f"{root}/mem", os.O_RDWR)
low = os.open(f"{root}/ram/low", os.O_RDWR)
high = os.open(f"{root}/ram/high", os.O_RDWR)

# What one way writes, the others read.
assert os.pwrite(mem, b"by mem", HIGH + 0x3FFE) == 6
assert os.pread(high, 6, 0x3FFE) == b"by mem"
with mmap.mmap(high, 0) as view:
    assert len(view) == 16 << 20
    assert view[0x3FFE:0x4004] == b"by mem"
    view[0x5000:0x5007] = b"by mmap"
    assert view.find(b"by mmap") == 0x5000
    # No msync: it is the guest's own page.
    assert os.pread(mem, 7, HIGH + 0x5000) == b"by mmap"
    assert os.pwrite(high, b"by ram", 0x6000) == 6
    assert view[0x6000:0x6006] == b"by ram"
with mmap.mmap(low, 4096, prot=mmap.PROT_READ, offset=0x100000) as view:
    assert view[:] == os.pread(mem, 4096, 0x100000)

# mem itself is direct I/O: it can't be shared, and says so.
try:
    mmap.mmap(mem, 4096)
    raise SystemExit("mem was mapped MAP_SHARED")
except OSError as error:
    assert error.errno == errno.ENODEV, error

# sendfile goes through the kernel's page cache, whose pages vmtree drops once a second while mem is open.
out = os.memfd_create("out")
def sent():
    os.lseek(out, 0, os.SEEK_SET)
    assert os.sendfile(out, mem, HIGH + 0x7000, 3) == 3
    return os.pread(out, 3, 0)
assert sent() == b"\0\0\0"
os.pwrite(high, b"new", 0x7000)
assert os.pread(mem, 3, HIGH + 0x7000) == b"new"
deadline = time.monotonic() + 10
while sent() != b"new":
    assert time.monotonic() < deadline, "sendfile stays stale"
    time.sleep(0.05)

# Holes.
assert os.lseek(mem, 0, os.SEEK_HOLE) == 48 << 20
assert os.lseek(mem, 48 << 20, os.SEEK_DATA) == HIGH
assert os.lseek(mem, 0, os.SEEK_END) == HIGH + (16 << 20)
# One read may be large.
assert len(os.pread(mem, 32 << 20, 0)) == 32 << 20
