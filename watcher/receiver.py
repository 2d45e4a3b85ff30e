"""A receiver to try things with: takes webhooks over HTTP, verifies them, and notices repeats and gaps."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from aiohttp import web

from watcher.captured import Captured
from watcher.delivery.webhook import ANSWER_LIMIT, flaw_of
from watcher.fields import as_written
from watcher.http.dial import Dialer
from watcher.http.pool import Pool
from watcher.http.wire import Head, Limits, NoAnswer, TimedOut, place_of
from watcher.receive import Event, InvalidWebhook, Order, follow, queue_of, read_body, verify

_KEEP = 100_000  # ids and queues remembered: names come from outside, and a repeat comes within days


class Sequences:
    """Remembers the last sequence of each (subscription, account), and says what is odd about the next
    one."""

    def __init__(self) -> None:
        self._last_by_queue: dict[tuple[str, str], int] = {}

    def note(self, event: Event, *, is_repeat: bool = False) -> Order | None:
        """Say what is odd about `event`, or None (`receive.follow`)."""
        queue = queue_of(event)
        if queue is None:
            return None
        last, order = follow(event, self._last_by_queue.pop(queue, None), is_repeat=is_repeat)
        if last is not None:  # put back at the end: the front is forgotten first
            self._last_by_queue[queue] = last
        if len(self._last_by_queue) > _KEEP:
            del self._last_by_queue[next(iter(self._last_by_queue))]
        return order


_FORWARD_TIMEOUT_S = 20  # as long as a whole attempt may take: the sender hangs up then
_LIMITS = Limits(ANSWER_LIMIT, 0)
_OWN_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)


class Fail(NamedTuple):
    """Answer the first `times` attempts of each event with `status`."""

    status: int
    times: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """One attempt that arrived, and its result.

    `event` is None if the request was refused, and `problem` says why. `attempt` counts from 1, as seen here.
    An event is taken when it was answered with 2xx; `is_repeat`: it had been taken before. `forwarded` is the
    result of passing it on, in a few words; `captured` is the file that it was written to.
    """

    event: Event | None
    problem: InvalidWebhook | None
    is_verified: bool
    status: int
    attempt: int
    is_repeat: bool
    order: Order | None
    forwarded: str | None = None
    captured: str | None = None

    @property
    def is_taken(self) -> bool:
        return self.event is not None and 200 <= self.status < 300


@dataclass(slots=True)
class _History:
    attempts: int = 0
    is_taken: bool = False


@dataclass(eq=False)
class Receiver:
    """An HTTP server that takes events at every path while it is entered (`async with`).

    Without `secrets`, nothing is verified. `notice` is called with each attempt before it is answered. With
    `forward_to`, what is not refused is POSTed there as it came, and answered with that answer. `capture`
    gets each request as it arrives, and returns where it wrote it. `events` are those taken, each once, in
    the order of arrival; `keep` limits them and `receipts`.
    """

    secrets: Sequence[str] = ()
    fail: Fail | None = None
    delay_s: float = 0
    forward_to: str | None = None
    notice: Callable[[Receipt], None] = lambda _receipt: None
    capture: Callable[[Captured], str | None] = lambda _captured: None
    clock: Callable[[], float] = time.time
    host: str = "127.0.0.1"
    port: int = 0
    keep: int = _KEEP
    events: deque[Event] = field(init=False)
    receipts: deque[Receipt] = field(init=False)
    taken: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.events = deque(maxlen=self.keep)
        self.receipts = deque(maxlen=self.keep)
        self._sequences = Sequences()
        self._history_by_id: dict[str, _History] = {}
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        """Start listening; `url` says where. Raises OSError if the port is taken."""
        app = web.Application()
        app.router.add_post("/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        self._pool = Pool(Dialer())
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()
        await self._pool.close()

    @property
    def url(self) -> str:
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    async def wait_for(self, count: int) -> list[Event]:
        """Wait until `count` different events were taken; the caller sets the limit of time."""
        async with self._news:
            await self._news.wait_for(lambda: self.taken >= count)
        return list(self.events)

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers]
        captured = self.capture(Captured("POST", request.raw_path, headers, body, self.clock()))
        receipt = replace(await self._receipt(request.headers, body), captured=captured)
        self.receipts.append(receipt)
        self.notice(receipt)
        async with self._news:
            self._news.notify_all()
        await asyncio.sleep(self.delay_s)
        # The sender keeps why it was refused: `watcher deliveries --attempts` shows it.
        return web.Response(status=receipt.status, text=str(receipt.problem) if receipt.problem else None)

    async def _receipt(self, headers: Mapping[str, str], body: bytes) -> Receipt:
        try:
            event = verify(headers, body, self.secrets, now=self.clock()) if self.secrets else read_body(body)
        except InvalidWebhook as problem:
            return Receipt(None, problem, False, problem.status, 1, False, None)
        history = _History()
        if event_id := headers.get("webhook-id", ""):  # without one, as nothing is verified, none is a repeat
            history = self._history_by_id.setdefault(event_id, history)
            if len(self._history_by_id) > _KEEP:
                del self._history_by_id[next(iter(self._history_by_id))]
        history.attempts += 1
        attempt = history.attempts
        status, forwarded = 200, None
        if self.fail and attempt <= self.fail.times:
            status = self.fail.status
        elif self.forward_to:
            status, forwarded = await self._forward(self.forward_to, headers, body)
        is_repeat, order = history.is_taken, None
        if 200 <= status < 300:
            order = self._sequences.note(event, is_repeat=is_repeat)
            if not is_repeat:
                history.is_taken = True
                self.events.append(event)
                self.taken += 1
        return Receipt(event, None, bool(self.secrets), status, attempt, is_repeat, order, forwarded)

    async def _forward(self, to: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        url = as_written(to)
        kept = [(name, value) for name, value in headers.items() if name.lower() not in _OWN_HEADERS]
        deadline = asyncio.get_running_loop().time() + _FORWARD_TIMEOUT_S
        try:
            head = Head.of("POST", url, [*kept, ("Content-Length", str(len(body)))]).written()
            request = b"%b\r\n%b" % (head, body)
            answer = await self._pool.send(place_of(url), request, _LIMITS, deadline=deadline)
        except TimedOut:
            return 504, f"not forwarded: no answer within {_FORWARD_TIMEOUT_S} s"
        except NoAnswer as error:
            return 502, f"not forwarded: {flaw_of(error).reason}"
        except ValueError:
            return 502, "not forwarded: it has a header that cannot be sent on"
        return answer.status, f"forwarded, and answered {answer.status} there"
