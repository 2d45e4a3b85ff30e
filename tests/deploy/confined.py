"""Runs a program under the system calls that a systemd unit leaves it, as systemd itself would enforce them.

    python confined.py UNIT PROGRAM [ARGUMENT ...]

Understands SystemCallFilter=, SystemCallErrorNumber=EPERM, MemoryDenyWriteExecute= and
RestrictAddressFamilies=, by libseccomp, and needs systemd-analyze for what the groups of calls mean. Refuses
to be a sandbox: files and networks are not confined.
"""

import ctypes
import errno
import mmap
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF_0000
_EPERM = 0x0005_0000 | errno.EPERM
_EQUAL, _MASKED_EQUAL = 4, 7  # enum scmp_compare
_PR_SET_NO_NEW_PRIVS = 38

LIBRARY = "libseccomp.so.2"


class _Argument(ctypes.Structure):
    """struct scmp_arg_cmp: a condition on one argument of a call."""

    _fields_ = (
        ("number", ctypes.c_uint),
        ("compare", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def allowed_calls(unit: str) -> set[str]:
    """The names of the calls that the filters leave, in the order in which they stand there."""
    calls: set[str] = set()
    for line in values(unit, "SystemCallFilter"):
        named = {call for word in line.removeprefix("~").split() for call in _calls(word)}
        calls = calls - named if line.startswith("~") else calls | named
    return calls


def _calls(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return {call for line in lines if line and not line.startswith("#") for call in _calls(line)}


class Filter:
    """One seccomp filter; what is loaded cannot be taken back."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(default))
        assert self._context

    def rule(self, action: int, call: str, *conditions: _Argument) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:  # others are of another architecture
            array = (_Argument * len(conditions))(*conditions)
            done = self._library.seccomp_rule_add_array(self._context, action, number, len(conditions), array)
            assert done == 0, (call, done)

    def load(self) -> None:
        done = self._library.seccomp_load(self._context)
        assert done == 0, os.strerror(-done)


def confine(unit: str) -> None:
    """Confine this process and all that it starts, for good."""
    filters = [_filter_of_calls(unit), _filter_of_memory(), _filter_of_sockets(unit)]
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for each in reversed(filters):
        each.load()


def _filter_of_calls(unit: str) -> Filter:
    assert values(unit, "SystemCallErrorNumber") == ["EPERM"]
    calls = Filter(_EPERM)
    for call in sorted(allowed_calls(unit) | {"seccomp", "prctl", "execve"}):
        calls.rule(_ALLOW, call)
    return calls


def _filter_of_memory() -> Filter:
    """What MemoryDenyWriteExecute= forbids: to map what is writable and executable, or make it executable."""
    memory = Filter(_ALLOW)
    both = mmap.PROT_WRITE | mmap.PROT_EXEC
    memory.rule(_EPERM, "mmap", _Argument(2, _MASKED_EQUAL, both, both))
    for call in ("mprotect", "pkey_mprotect"):
        memory.rule(_EPERM, call, _Argument(2, _MASKED_EQUAL, mmap.PROT_EXEC, mmap.PROT_EXEC))
    return memory


def _filter_of_sockets(unit: str) -> Filter:
    (families,) = values(unit, "RestrictAddressFamilies")
    numbers = {int(getattr(socket, name)) for name in families.split()}
    sockets = Filter(_ALLOW)
    for number in set(range(64)) - numbers:
        sockets.rule(_EPERM, "socket", _Argument(0, _EQUAL, number, 0))
    return sockets


if __name__ == "__main__":
    confine(Path(sys.argv[1]).read_text())
    os.execvp(sys.argv[2], sys.argv[2:])
