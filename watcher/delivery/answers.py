"""How many bytes of an answer are taken from a connection at all, and when it is over.

Refuses to judge what they say. aiohttp bounds each head and hands bodies on in pieces; but interim answers,
chunk extensions and whatever comes on an idle connection have no end there: 8 MB became 400 MB of objects.
"""

import asyncio
import re
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import ClientError, StreamReader, TCPConnector
from aiohttp.client_proto import ResponseHandler

ANSWER_LIMIT = 64 * 1024
"""Bytes of one answer, its head and what came before it included. The connection ends with the next one."""


@dataclass(slots=True)
class Progress:
    """How far a request has come, whatever becomes of it. `status` is known from its line on: a head that has
    no end, or that aiohttp cannot read, does not undo what the receiver did.
    """

    is_connected: bool = False
    is_reused: bool = False
    status: int | None = None


progress: ContextVar[Progress] = ContextVar("progress")
"""Of the request that this task sends next."""

_HEADS_UNREAD = 16
"""Interim answers in one piece of data. A server says `100 Continue` and `103 Early Hints`, once or twice."""

_INTERIM = range(100, 200)
_SWITCHING = 101
_END_OF_HEAD = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")
_LONGEST_STATUS = 16


class AnswerTooLong(ClientError):
    """The limit was reached before there was a status. What comes later of an answer is just left out."""


def bound_answers(connector: TCPConnector) -> None:
    """Make all connections of `connector` bounded; call it before the first one is opened."""
    factory = partial(_BoundedConnection, loop=asyncio.get_running_loop())
    connector._factory = factory  # type: ignore[assignment]  # noqa: SLF001 -- there is no public way


def drop_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error and its causes passed through, and so of what these had read.

    A connection holds the error that ended it, and the error's frames hold the connection: answers that are
    not HTTP left 57 KiB each behind, until such circles were collected.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class _BoundedConnection(ResponseHandler):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._room = ANSWER_LIMIT
        self._is_final = False
        self._is_used = False
        self._progress = Progress()
        self._beginning = b""

    def set_response_params(self, **params: Any) -> None:
        """Make room for the answer to another request. Runs in the task that sends it."""
        self._progress = progress.get(self._progress)
        self._progress.is_connected, self._progress.is_reused = True, self._is_used
        self._is_used = True
        self._beginning = b""
        self._room = ANSWER_LIMIT
        self._is_final = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take what there is room for, each head by itself: a fault behind it must not hide a status."""
        if not data:  # a reader that had to wait asks for the rest of what is here already
            super().data_received(data)
            return
        for part in _heads_apart(data[: max(self._room, 0)]):
            if self._is_answered or len(self) > _HEADS_UNREAD:
                self._cut()
            if self._exception:
                break
            self._note_status(part)
            super().data_received(part)
        self._room -= len(data)
        if self._room < 0:
            self._cut()
        if self._exception and self._payload:
            self._payload.feed_eof()  # what has come of the body is all there will be; nobody waits for more

    def _note_status(self, part: bytes) -> None:
        """Read the status in what may be the beginning of a head, or one whole head."""
        if self._progress.status is not None:
            return
        self._beginning += part[: _LONGEST_STATUS - len(self._beginning)]
        found = _STATUS.match(self._beginning)
        if found and (int(found[1]) not in _INTERIM or int(found[1]) == _SWITCHING):
            self._progress.status = int(found[1])
        elif part.endswith(_END_OF_HEAD):
            self._beginning = b""

    def feed_data(self, data: tuple[Any, StreamReader], size: int = 0) -> None:
        """Note whether this head is the answer, or one of those that may come before it."""
        self._is_final = data[0].code not in _INTERIM
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Keep the error, and not the frames of its cause: where nobody waits for it, nobody drops them."""
        drop_frames(exc_cause)
        super().set_exception(exc, *filter(None, [exc_cause]))

    def close(self) -> None:
        """Close at once: a peer may take for ever to receive the rest, or to say goodbye over TLS.

        What came when the attempt was over is not kept either: it and the connection hold each other.
        """
        self._buffer.clear()
        self.abort()

    @property
    def _is_answered(self) -> bool:
        return self._is_final and (self._payload is None or self._payload.is_eof())

    def _cut(self) -> None:
        self.set_exception(AnswerTooLong())
        if self.transport is not None:
            self.transport.abort()


def _heads_apart(data: bytes) -> list[bytes]:
    *heads, rest = data.split(_END_OF_HEAD, _HEADS_UNREAD + 1)
    parts = [head + _END_OF_HEAD for head in heads]
    return [*parts, rest] if rest else parts
