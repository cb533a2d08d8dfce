#!/usr/bin/env python3
"""Prints the system calls of a running guest.  usage: syscalls.py MOUNTPOINT [COUNT]"""
import sys

vm, left = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
fields = lambda text: dict(word.split("=", 1) for word in text.split())
show = lambda path: fields(open(f"{vm}/{path}").read())

entry = int(show("vcpu/0/regs/all").get("lstar", "0"), 16)  # where SYSCALL goes; 0 until the kernel has said so
if entry == 0:
    with open(f"{vm}/events/msr,index=0xc0000082,dir=to") as written:
        entry = int(fields(written.readline())["new"], 16)
gpa = int(show(f"vcpu/0/translate,gva={entry:#x}")["gpa"], 16)
with open(f"{vm}/events/slat,gpa={gpa:#x}-{gpa + 1:#x},access=x", "r+b", buffering=0) as events:
    while left > 0:
        for event in map(fields, events.read(65536).decode().splitlines()):
            regs = show(f"vcpu/{event['vcpu']}/regs/all")
            print(event["cr3"], "syscall", int(regs["rax"], 16), regs["rdi"], regs["rsi"], regs["rdx"])
            left -= 1
            events.write(f"{event['seq']} continue\n".encode())
