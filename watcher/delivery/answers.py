"""How many bytes of an answer are taken from a connection at all, and when it is over.

Refuses to judge what they say. aiohttp bounds each head and hands bodies on in pieces; but interim answers,
chunk extensions and whatever comes on an idle connection have no end there: 8 MB became 400 MB of objects.
"""

import asyncio
from contextvars import ContextVar
from functools import partial
from typing import Any

from aiohttp import ClientError, StreamReader, TCPConnector
from aiohttp.client_proto import ResponseHandler

ANSWER_LIMIT = 64 * 1024
"""Bytes of one answer, its head and what came before it included. The connection ends with the next one."""

is_reused: ContextVar[bool] = ContextVar("is_reused", default=False)
"""Whether the connection that this task's last request went out on had been used before."""

_HEADS_UNREAD = 16
"""Interim answers in one piece of data. A server says `100 Continue` and `103 Early Hints`, once or twice."""

_INTERIM = range(100, 200)
_END_OF_HEAD = b"\r\n\r\n"


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

    def set_response_params(self, **params: Any) -> None:
        """Make room for the answer to another request. Runs in the task that sends it."""
        is_reused.set(self._is_used)
        self._is_used = True
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
            super().data_received(part)
        self._room -= len(data)
        if self._room < 0:
            self._cut()
        if self._exception and self._payload:
            self._payload.feed_eof()  # what has come of the body is all there will be; nobody waits for more

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
