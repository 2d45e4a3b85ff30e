"""Sends requests and keeps connections: one request at a time on each, none beyond its deadline.

Refuses redirects, cookies, proxies and pipelining; a connection on which anything was odd is closed.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Coroutine, Hashable
from functools import cached_property
from typing import Any, Generic, TypeVar

from watcher.http.dial import Dialer, Line
from watcher.http.wire import Answer, Disconnected, Limits, NoAnswer, NotHttp, Place, Reader, Reset, TimedOut

MOST_KEPT = 5_000
KEEP_ALIVE_S = 4.0
"""Below the 5 s after which common servers hang up: a request must not meet a closing door."""

_AGAIN_WITHIN_S = 1.0

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Deadlines that are rarely reached, all by one timer: one of the loop for each request costs
    more than all else about its deadline. `reached(key)` is called at its deadline, in the loop's time.
    """

    def __init__(self, reached: Callable[[K], object]) -> None:
        self._reached = reached
        self._at: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the first use, and of all others: to ask for it each time is a system call."""
        return asyncio.get_running_loop()

    def set(self, key: K, at: float) -> None:
        """Set a key's one deadline."""
        self._at[key] = at
        if at < self._rings_at:
            self._ring_at(at)

    def drop(self, key: K) -> None:
        """Forget a key's deadline, if it has one. The timer stays as it is, and finds nothing due."""
        self._at.pop(key, None)

    def _ring_at(self, at: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self.loop.call_at(at, self._ring)

    def _ring(self) -> None:
        now, self._rings_at, self._timer = self.loop.time(), math.inf, None
        due = [key for key, at in self._at.items() if at <= now]
        for key in due:
            del self._at[key]
        if self._at:
            self._ring_at(min(self._at.values()))
        for key in due:
            self._reached(key)


class Pool:
    """Connections to many places. Needs a running loop.

    No more than `keep` idle ones stay open, each for `keep_alive_s`; at most `limit` requests to one place
    are under way, others wait (0: no limit).
    """

    def __init__(
        self, dialer: Dialer, *, keep_alive_s: float = KEEP_ALIVE_S, keep: int = MOST_KEPT, limit: int = 0
    ) -> None:
        self._dialer = dialer
        self._keep_alive_s = keep_alive_s
        self._keep = keep
        self.limit = limit
        """That of places which are new from now on."""
        self._slots: dict[Place, asyncio.Semaphore] = {}
        self._idle: defaultdict[Place, list[Connection]] = defaultdict(list)
        self._kept = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.deadlines = Deadlines(Connection.time_out)
        self.loop = self.deadlines.loop
        self.time = self.loop.time
        """The clock by which deadlines are set."""

    def send(
        self, place: Place, request: bytes, limits: Limits, *, deadline: float, rest_s: float | None = None
    ) -> Coroutine[Any, Any, Answer]:
        """Send a request, and once more if an idle connection turned out to be closed. Raises NoAnswer.

        `deadline` is one of the loop's clock. Once the status is known, the rest of the answer is awaited for
        `rest_s` at most; `cut` says why the rest is missing.
        """
        if self.limit:
            return self._send_in_turn(place, request, limits, deadline, rest_s)
        return self._send(place, request, limits, deadline, rest_s)

    async def close(self) -> None:
        """Close the idle connections, and each other one when its request has ended."""
        self._is_closed = True
        if self._sweep:
            self._sweep.cancel()
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
        await self._dialer.close()
        await asyncio.sleep(0)  # in which their sockets are closed

    async def _send_in_turn(
        self, place: Place, request: bytes, limits: Limits, deadline: float, rest_s: float | None
    ) -> Answer:
        """Send a request when no more than `limit` others to its place are under way."""
        slots = self._slots.get(place)
        if slots is None:
            slots = self._slots[place] = asyncio.Semaphore(self.limit)
        try:
            if slots.locked():
                async with asyncio.timeout_at(deadline):
                    await slots.acquire()
            else:
                await slots.acquire()
        except TimeoutError:
            raise TimedOut(is_connected=False) from None
        try:
            return await self._send(place, request, limits, deadline, rest_s)
        finally:
            slots.release()

    async def _send(
        self, place: Place, request: bytes, limits: Limits, deadline: float, rest_s: float | None
    ) -> Answer:
        now = self.time()
        kept = self._take(place, now)
        connection = kept or Connection(self, place)
        while True:
            outcome: Answer | NoAnswer | None = None
            try:
                coming = connection.ask(request, limits, deadline, rest_s)
                if connection.transport is None:
                    async with asyncio.timeout_at(deadline):
                        await self._dialer.connect(place, connection)
                outcome = await coming
            except TimeoutError:
                raise TimedOut(is_connected=False) from None
            finally:
                if outcome is None:
                    connection.abort()
            if not connection.reader.may_go_on or self._is_closed or self._kept >= self._keep:
                connection.abort()
            else:
                connection.idle_since = self.time()
                self._idle[place].append(connection)
                self._kept += 1
                if self._sweep is None:
                    self._sweep = self.loop.call_later(self._keep_alive_s, self._close_old)
            if isinstance(outcome, Answer):
                return outcome
            was_closed = connection is kept and isinstance(outcome, Disconnected)
            if not was_closed or self.time() > now + _AGAIN_WITHIN_S:
                try:
                    raise outcome
                finally:
                    del coming, outcome  # else this frame and the error hold each other until collected
            connection = Connection(self, place)

    def _take(self, place: Place, now: float) -> "Connection | None":
        """Take the connection that was used last: the others may become old."""
        connections = self._idle.get(place)
        while connections:
            connection = connections.pop()
            self._kept -= 1
            is_young = now < connection.idle_since + self._keep_alive_s
            if is_young and connection.transport and not connection.transport.is_closing():
                return connection
            connection.abort()
        return None

    def drop(self, connection: "Connection") -> None:
        """Forget an idle connection that was closed."""
        connections = self._idle.get(connection.place, [])
        if connection in connections:
            connections.remove(connection)
            self._kept -= 1

    def _close_old(self) -> None:
        self._sweep = None
        until = self.time() - self._keep_alive_s
        for place, connections in [*self._idle.items()]:
            old = [connection for connection in connections if connection.idle_since <= until]
            for connection in old:
                connection.abort()
            del connections[: len(old)]
            self._kept -= len(old)
            if not connections:
                del self._idle[place]
        if self._kept:
            self._sweep = self.loop.call_later(self._keep_alive_s / 2, self._close_old)


class Connection(Line):
    """One connection, and the request that is under way on it."""

    reader: Reader

    def __init__(self, pool: Pool, place: Place) -> None:
        self.place = place
        self.loop = pool.loop
        self.idle_since = 0.0
        self._pool = pool
        self._request = b""
        self._limits = Limits(0, 0)
        self._deadline = 0.0
        self._rest_s: float | None = None
        self._answer: asyncio.Future[Answer | NoAnswer] | None = None

    def ask(
        self, request: bytes, limits: Limits, deadline: float, rest_s: float | None
    ) -> asyncio.Future[Answer | NoAnswer]:
        """Send a request, at once or in the turn of the loop that makes the connection, so that whatever a
        peer says or does is about it. What comes of it is as of `Pool.send`.
        """
        self._request, self._limits, self._deadline, self._rest_s = request, limits, deadline, rest_s
        answer = self._answer = self.loop.create_future()
        if self.transport:
            self._begin(self.transport)
        return answer

    def abort(self) -> None:
        self._answer = None
        self._pool.deadlines.drop(self)
        if self.transport:
            self.reader.close()
        super().abort()

    def time_out(self) -> None:
        """End the request under way: its deadline is reached."""
        self._finish(TimedOut(is_connected=True))

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.reader = Reader()
        if self.transport and self._answer:
            self._begin(self.transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # no request is under way
            self.abort()
            return
        try:
            is_whole = self.reader.feed(data)
        except NoAnswer as error:
            self._finish(error)
            return
        if is_whole:
            self._finish(NotHttp() if self.reader.is_odd else None)
        elif self._rest_s is not None and self.reader.has_status:
            deadline, self._rest_s = min(self._deadline, self.loop.time() + self._rest_s), None
            self._pool.deadlines.set(self, deadline)

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._pool.drop(self)
        self.abort()

    def _begin(self, transport: asyncio.Transport) -> None:
        self.reader.begin(self._limits)
        self._pool.deadlines.set(self, self._deadline)
        request, self._request = self._request, b""
        try:
            transport.write(request)
        except RuntimeError:  # what uvloop says where a connection was closed a moment ago
            self._finish(Disconnected())

    def _end(self, exc: Exception | None) -> None:
        if self._answer is None:
            return
        lost = Reset() if exc else Disconnected()
        lost.__cause__ = exc
        self._finish(None if self.reader.end() and not exc else lost)
        self.reader.may_go_on = False

    def _finish(self, cut: NoAnswer | None = None) -> None:
        """Give the caller the answer as far as it came, or the error if there is none."""
        waiting, self._answer = self._answer, None
        self._pool.deadlines.drop(self)
        if cut is not None:
            self.reader.may_go_on = False
        if waiting is not None and not waiting.done():  # else its caller was cancelled
            waiting.set_result(self.reader.answer(cut) or cut or Disconnected())
