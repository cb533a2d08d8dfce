#!/usr/bin/env python3
"""Counts the calls of a function by a breakpoint that the guest can't see.

usage: hidden-hook.py MOUNTPOINT GVA [COUNT]

The vCPUs run on a view where the function's page is a private copy with INT3 at GVA. That page may only be executed there:
a read or write of it is done on the clean view, so whoever looks at the code finds it untouched.
"""
import os
import select
import sys

vm, gva, left = sys.argv[1], int(sys.argv[2], 0), int(sys.argv[3]) if len(sys.argv) > 3 else 10


def fields(text):
    return dict(word.split("=", 1) for word in text.split())


def write(path, text):
    with open(f"{vm}/{path}", "w") as file:
        file.write(text)


def answer(events, line):
    """Answers one event; True if it was our breakpoint."""
    event = fields(line)
    ours = event["kind"] == "breakpoint" and int(event["rip"], 16) == gva
    # The instruction below our INT3, and any access to the page, happen on the clean view.
    action = "continue" if event["kind"] == "breakpoint" and not ours else "step view=0"
    os.write(events, f"{event['seq']} {action}\n".encode())
    if ours:
        print("called on vCPU", event["vcpu"], "cr3", event["cr3"], flush=True)
    return ours


with open(f"{vm}/vcpu/0/translate,gva={gva:#x}") as file:
    gpa = int(fields(file.read())["gpa"], 16)
page = gpa & ~0xFFF
opened = [os.open(f"{vm}/events/{name}", os.O_RDWR) for name in ("breakpoint", "slat")]
os.mkdir(f"{vm}/views/hook")
try:
    write("views/hook/remap", f"{page:#x} copy")
    with open(f"{vm}/views/hook/mem", "r+b", buffering=0) as mem:
        mem.seek(gpa)
        mem.write(b"\xcc")
    write("views/hook/access", f"{page:#x}-{page + 0x1000:#x} --x")
    write("view", "hook")
    poll = select.poll()
    for events in opened:
        poll.register(events, select.POLLIN)
    while left > 0:
        for events, _ in poll.poll():
            for line in os.read(events, 65536).decode().splitlines():
                left -= answer(events, line)
finally:
    write("view", "0")
    for events in opened:
        os.close(events)
    os.rmdir(f"{vm}/views/hook")
