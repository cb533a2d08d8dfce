#!/usr/bin/env python3
"""Counts the calls of a function by a breakpoint that the guest can't see.

usage: hidden-hook.py MOUNTPOINT GVA [COUNT]

The vCPUs run on a view where the function's page is a private copy with INT3 at GVA. That page may only be executed there:
a read or write of it is done on the clean view, so whoever looks at the code finds it untouched.
"""
import os
import select
import signal
import sys

vm, gva, left = sys.argv[1], int(sys.argv[2], 0), int(sys.argv[3]) if len(sys.argv) > 3 else 10

ended = False


def end(*_):
    """Ctrl-C, kill and timeout: what was read is still answered, and the view goes."""
    global ended
    ended = True


for number in signal.SIGINT, signal.SIGTERM:
    signal.signal(number, end)


def fields(text):
    return dict(word.split("=", 1) for word in text.split())


def write(path, text):
    with open(f"{vm}/{path}", "w") as file:
        file.write(text)


def pending(wait):
    """The events that wait for an answer, after at most `wait` milliseconds."""
    for events, _ in poll.poll(wait):
        for line in os.read(events, 65536).decode().splitlines():
            yield events, fields(line)


def answer(events, event):
    """Answers one event; True if it was our breakpoint."""
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
poll = select.poll()
for events in opened:
    poll.register(events, select.POLLIN)
os.mkdir(f"{vm}/views/hook")
try:
    write("views/hook/remap", f"{page:#x} copy")
    with open(f"{vm}/views/hook/mem", "r+b", buffering=0) as mem:
        mem.seek(gpa)
        mem.write(b"\xcc")
    write("views/hook/access", f"{page:#x}-{page + 0x1000:#x} --x")
    write("view", "hook")
    while left > 0 and not ended:
        for events, event in pending(200):
            left -= answer(events, event)
finally:
    write("view", "0")
    # Whoever is held at our INT3 finds the function's own byte on the clean view.
    for events, event in pending(0):
        os.write(events, f"{event['seq']} view=0\n".encode())
    for events in opened:
        os.close(events)
    os.rmdir(f"{vm}/views/hook")
