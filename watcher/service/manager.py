"""Tells the service manager how far the worker is, as systemd's `Type=notify` asks for.

Refuses to fail: a worker that nobody manages, or whose manager is gone, works all the same.
"""

import os
import socket
import time
from contextlib import suppress


def tell_ready() -> None:
    """The worker has started, or goes on by another configuration."""
    _tell("READY=1")


def tell_reloading() -> None:
    """The worker reads its configuration again; `tell_ready` follows, whatever comes of it."""
    _tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def tell_stopping() -> None:
    """The worker drains."""
    _tell("STOPPING=1")


def _tell(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # in Linux's abstract namespace
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)  # a manager that hangs must not hold up the loop
        manager.sendto(state.encode(), address)
