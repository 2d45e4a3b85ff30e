"""Takes the signals of this process, from its first instruction to its last one.

One handler stays in place all the time, so that there is no moment at which the system's default action would
kill the process; what it does with a signal depends on how far the process is. Imports nothing of weight: it
must be in place before anything else is imported.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False  # as in typing, whose import takes a third of the time until the handler is in place
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

EXIT_SIGNAL = 128
"""Added to the number of a signal: what a shell says of a process that a signal ended."""


class Ended(SystemExit):
    """A signal ends the process. No KeyboardInterrupt, which the interpreter may answer by killing itself."""


_is_worker = False
_ends_well = False
_came: list[int] = []
"""Signals that came before a command took them over, oldest first."""
_pass_on: Callable[[int], object] | None = None


def install(*, is_worker: bool, lasts: bool = True) -> None:
    """Put the handler in place. A worker that does not last was to poll everything once, and has not.

    Until a command takes the signals over, they end the process as Ctrl-C would: its `finally` blocks run.
    Only a worker remembers SIGHUP for later. A signal that the parent ignored, as nohup does, stays ignored.
    """
    global _is_worker, _ends_well
    _is_worker, _ends_well = is_worker, is_worker and lasts
    sys.unraisablehook = _unraised
    # Of other commands asyncio takes SIGINT as it needs it, if no handler is set.
    for number in (signal.SIGTERM, signal.SIGHUP, *([signal.SIGINT] if is_worker else [])):
        if is_worker or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)


def take_over(
    call_soon: Callable[[Callable[[int], object], int], object],
    take: Callable[[int], object],
    *,
    also_ignored: bool = False,
) -> None:
    """From now on call `take(number)` in a loop at each signal, for those that came earlier first.

    `call_soon` is the loop's `call_soon_threadsafe`.

    Once the loop is closed, signals do nothing any more: the process is about to end, with the exit code that
    it has earned. `also_ignored`: even those that the parent had ignored.
    """
    global _pass_on

    def pass_on(number: int) -> None:
        with suppress(RuntimeError):  # the loop is closed
            call_soon(take, number)

    _pass_on = pass_on
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if also_ignored or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)
    while _came:
        pass_on(_came.pop(0))


def ignore() -> None:
    """The command has ended with its exit code: the interpreter puts the system's default actions
    back when it ends, and must not be killed meanwhile."""
    if _pass_on:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def has_ended() -> bool:
    """Whether a signal has asked to end, before a command took them over: errors after it come from that. A
    library may wrap what the handler raises into an error of its own."""
    return any(number != signal.SIGHUP or not _is_worker for number in _came)


def exit_code() -> int:
    """The exit code of a process that a signal ended before its command took signals over.

    A worker that has not begun anything yet ends in order.
    """
    return 0 if _ends_well else EXIT_SIGNAL + (_came[0] if _came else signal.SIGINT)


def _unraised(what: sys.UnraisableHookArgs) -> None:
    """A library that is called back from C drops what the handler raises, and the process goes on. The signal
    is remembered, and passed on once a command takes it over: there is nothing to say."""
    if not issubclass(what.exc_type, Ended):
        sys.__unraisablehook__(what)


def _note(number: int, frame: FrameType | None) -> None:
    if _pass_on:
        _pass_on(number)
        return
    _came.append(number)
    if number == signal.SIGHUP and _is_worker:
        return
    interrupt = signal.getsignal(signal.SIGINT)  # asyncio's own, while it runs: it cancels what is under way
    if not callable(interrupt) or interrupt in (_note, signal.default_int_handler):
        raise Ended(exit_code())
    interrupt(number, frame)
