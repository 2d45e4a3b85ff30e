"""Sends what one turn of the event loop asks of Redis as one pipeline: most of the cost is the round trip.

Steps of a script that takes several at a time go in one call: most of what is left is the call. An error
reaches only the step that caused it: a script fails before it writes, so the steps of a joint call that
failed are taken one by one. A command whose script is unknown to the server is sent again in full; everything
else is answered once, with its result or its error.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from watcher.store.errors import DamagedKey, in_our_words, translated, unreadable, where
from watcher.store.exceptions import ServerRefused

_MOST_KEYS = 4002
"""Keys of a joint call of several steps: a commit to 2,000 queues has so many, and holds the server up for
13 ms."""

_LISTED_AT_ONCE = 500
"""Keys looked at in one go."""

_MOST = 512
"""Commands in one pipeline: enough to amortize the round trip, few enough not to hold up the rest."""

_FILLING = frozenset({"commit", "enqueue"})
"""Scripts that bring in events and deliveries: only a server that was not refused is given those."""


@dataclass(slots=True)
class Verdict:
    """How the servers of a store were judged: on each new connection before its first command, and by
    `StoreHealth`, which `has_connected` wakes."""

    refusal: ServerRefused | None = None
    has_connected: asyncio.Event = field(default_factory=asyncio.Event)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic operation, `scripts/<name>.lua`."""

    name: str
    text: str
    digest: str


def in_parts(items: Sequence[T], at_most: int) -> Iterator[Sequence[T]]:
    """Cut what would be too much for one command, or for one turn of the event loop."""
    for start in range(0, len(items), at_most):
        yield items[start : start + at_most]


def load_script(name: str) -> Script:
    """Read a script, with the parts in front of it that it says it uses."""
    room = files("watcher.store").joinpath("scripts")
    text = room.joinpath(f"{name}.lua").read_text("utf-8")
    if used := re.search("^-- uses (.+)$", text, re.M):
        parts = [room.joinpath("parts", f"{part}.lua").read_text("utf-8") for part in used[1].split(", ")]
        text = "".join([*parts, text])
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """A script that takes several steps in a call, and the keys and arguments that these have in common.

    Both come before those of the steps. The answer holds as many values for each step. Steps are joined
    where they name the same Joint, and each a first key of its own; `most` bounds how long a call holds up
    the server.
    """

    script: Script
    keys: tuple[str, ...]
    arguments: tuple[Any, ...] = ()
    most: int = 16


_MOST_JOINTS = 20_000
"""Kept of one script: names come and go, and another one is soon made."""


class Joints(dict[tuple[int, str], Joint]):
    """The joints of one script, by shard and by the name of a provider or subscription."""

    def __init__(self, make: Callable[[int, str], Joint]) -> None:
        self._make = make

    def __missing__(self, where: tuple[int, str]) -> Joint:
        if len(self) >= _MOST_JOINTS:
            self.clear()
        joint = self[where] = self._make(*where)
        return joint


class Call:
    """What one caller asks: the keys and arguments of a step of a joint, or a whole command."""

    __slots__ = ("answer", "arguments", "joint", "keys", "script")

    def __init__(
        self,
        arguments: tuple[Any, ...],
        *,
        script: Script | None = None,
        joint: Joint | None = None,
        keys: tuple[str, ...] = (),
    ) -> None:
        self.arguments = arguments
        self.script = script
        self.joint = joint
        self.keys = keys
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def first_key(self) -> str | None:
        """The key that decides the node: all its keys are in one slot."""
        key = self.keys[:1] if self.joint else self.arguments[1:2]
        return key[0] if key else None

    @property
    def is_filling(self) -> bool:
        script = self.joint.script if self.joint else self.script
        return script is not None and script.name in _FILLING

    @property
    def all_keys(self) -> tuple[str, ...]:
        if self.joint:
            return (*self.joint.keys, *self.keys)
        count = self.arguments[0] if self.script else 1
        return tuple(map(str, self.arguments[1 : 1 + count]))

    def settle(self, answer: Any) -> None:
        """Give its caller the answer, or the error that came instead."""
        if self.answer.done():
            return  # its caller was cancelled meanwhile
        if isinstance(answer, asyncio.CancelledError):
            self.answer.cancel()
        elif isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)

    def again(self) -> "Call":
        """Copy the call, to be answered anew."""
        return Call(self.arguments, script=self.script, joint=self.joint, keys=self.keys)


class Pipe:
    """Commands and scripts for one server. `run` gathers them; without it each goes out at once."""

    is_cluster = False

    def __init__(self, client: "Redis", verdict: Verdict | None = None) -> None:
        self._client = client
        self.verdict = verdict or Verdict()
        self._waiting: list[Call] = []
        self._wake = asyncio.Event()
        self._runners = 0
        self._asking = asyncio.Lock()
        self._kept = _Kept(client.connection_pool, {}, False, None)
        self._ahead_ms = (time.time() - time.monotonic()) * 1000

    def now_ms(self) -> int:
        """The server's clock, as its answers show it, carried on by a monotonic clock: it never jumps."""
        return int(time.monotonic() * 1000 + self._ahead_ms)

    def set_clock(self, now_ms: float) -> None:
        """Note the time that an answer of the server shows."""
        self._ahead_ms = now_ms - time.monotonic() * 1000

    # All raise StoreError where the server does not do its part, and otherwise redis-py's ResponseError.

    async def ask_clock(self) -> float:
        """Ask the server for its time, in ms."""
        seconds, microseconds = await self.command("TIME")
        return int(seconds) * 1000 + int(microseconds) / 1000

    async def command(self, *command: Any) -> Any:
        return await self.send(Call(command))

    async def batch(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in a round trip of their own, without a task or future for each.

        Returns their answers, and redis-py's errors for those that the server refuses.
        """
        async with self._asking:
            with translated(self._client):
                return await self._kept.ask(commands)

    async def script(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        return await self.send(Call((len(keys), *keys, *arguments), script=script))

    async def step(self, joint: Joint, keys: tuple[str, ...], *arguments: Any) -> Any:
        """Take one step of a script that takes several; returns its part of the answer."""
        return await self.send(Call(arguments, joint=joint, keys=keys))

    async def run(self) -> None:
        """Gather and send until cancelled. Start two, so that one can send while the other waits."""
        task = asyncio.current_task()
        assert task
        self._runners += 1
        try:
            # Asked, because redis-py may swallow a cancellation: before Python 3.12 `asyncio.wait_for` does.
            while not task.cancelling():
                await self._wake.wait()
                calls, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                if not self._waiting:
                    self._wake.clear()
                if calls:  # the other runner may have been faster
                    await self._execute(calls)
            raise asyncio.CancelledError
        finally:
            self._runners -= 1
            if not self._runners:  # none is left to fetch an answer: no caller waits for one
                calls, self._waiting = self._waiting, []
                self._wake.clear()
                for call in calls:
                    call.settle(asyncio.CancelledError())

    async def send(self, call: Call) -> Any:
        """Send a call and wait for its answer. A call is sent once; `again` makes another of it."""
        try:
            if self._runners:
                self._waiting.append(call)
                self._wake.set()
            else:
                await self._execute([call])
            return await call.answer
        except (RedisError, OSError) as error:
            ours = in_our_words(error, where(self._client))
            if isinstance(ours, DamagedKey):
                ours.keys = call.all_keys
            if ours is None:
                raise
            raise ours from error

    async def send_where_it_moves(self, call: Call) -> Any:
        """Send a call to the node of a Cluster that is just being given its keys."""
        with translated(self._client):
            command = Packet([call]).command(in_full=True)
            _, answer = await self._pipeline([("ASKING",), command], [False, call.is_filling])
            if isinstance(answer, Exception):
                raise answer
            return answer

    async def servers(self) -> list[Redis]:
        """The clients of all servers that state lies on."""
        return [self._client]

    async def servers_of(
        self, shards: Sequence[int], key: Callable[[int], str]
    ) -> list[tuple[Redis, Sequence[int]]]:
        """The clients of all servers, each with the shards that lie there; `key` names a key of a shard."""
        return [(self._client, shards)]

    async def names(self, pattern: str) -> AsyncIterator[str]:
        """List the keys of a pattern on all servers, those that stay meanwhile; some perhaps twice."""
        for server in await self.servers():
            cursor: int | None = None
            while cursor != 0:
                with translated(server):
                    cursor, names = await server.scan(cursor or 0, pattern, _LISTED_AT_ONCE)
                for name in names:
                    assert isinstance(name, bytes), "answers come as the server gives them"
                    yield name.decode("utf-8", "replace")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._kept.give_back()
        await self._client.aclose()

    async def _execute(self, calls: list[Call]) -> None:
        with _answering(calls):
            packets = list(packed(calls))
            answers = await self._answers(packets)
            apart = [
                packet for packet, answer in zip(packets, answers, strict=True) if packet.must_part(answer)
            ]
            if apart:
                steps = [Packet([call]) for packet in apart for call in packet.calls]
                packets += steps
                answers += await self._answers(steps)
            for packet, answer in zip(packets, answers, strict=True):
                packet.hand_out(answer)

    async def _answers(self, packets: "list[Packet]") -> list[Any]:
        is_filling = [packet.calls[0].is_filling for packet in packets]
        answers = await self._pipeline([packet.command() for packet in packets], is_filling)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            in_full = [packets[i].command(in_full=True) for i in unknown]
            again = await self._pipeline(in_full, [is_filling[i] for i in unknown])
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        return answers

    async def _pipeline(self, commands: list[tuple[Any, ...]], is_filling: list[bool]) -> list[Any]:
        async with _Batch(self._client.connection_pool, {}, False, None) as batch:
            batch.verdict = self.verdict
            for command, fills in zip(commands, is_filling, strict=True):
                batch.execute_command(*command, is_filling=fills)
            answers: list[Any] = await batch.execute(raise_on_error=False)
        return answers


class _answering:  # noqa: N801 -- as `errors.translated`
    """Give any error raised inside to all calls without an answer: no call waits for ever, and no runner
    ends, which would end the worker."""

    __slots__ = ("_calls",)

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        is_theirs = isinstance(error, Exception)
        for call in self._calls:
            call.settle(error if is_theirs else asyncio.CancelledError())
        return is_theirs


class _Batch(Pipeline):
    """redis-py's pipeline without what costs it most: packing in Python, and a timer for each answer.

    Answers come as the server gives them, which is the same from all servers. What fills a server that was
    refused is not sent, and the refusal is its answer.
    """

    verdict = Verdict()

    async def _execute_pipeline(
        self, connection: Any, commands: list[Any], raise_on_error: bool
    ) -> list[Any]:
        if not connection.is_connected:
            await connection.connect_check_health(check_health=False)  # by which its server is judged
        if refusal := self.verdict.refusal:
            sent = [command for command in commands if not command[1].get("is_filling")]
            answered = iter(await self._send(connection, sent) if sent else ())
            return [refusal if options.get("is_filling") else next(answered) for _, options in commands]
        return await self._send(connection, commands)

    async def _send(self, connection: Any, commands: list[Any]) -> list[Any]:
        packed = b"".join([pack_command(command) for command, _ in commands])
        try:
            await connection.send_packed_command(packed)
        except RuntimeError as error:  # what uvloop says where a connection was closed a moment ago
            raise NoConnection("the connection was closed") from error
        try:
            async with asyncio.timeout(connection.socket_timeout):
                answers: list[Any] = []
                for _ in commands:
                    try:
                        answers.append(await connection.read_response(timeout=math.inf))
                    except ResponseError as error:  # is the answer to one of them
                        answers.append(error)
                return answers
        except TimeoutError:
            raise RedisTimeout("no answer in time") from None
        except ValueError as error:
            raise unreadable(error) from None


class _Kept(_Batch):
    """Keeps its connection for the next batch: to get one from the pool costs as much as to ask."""

    async def ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.connection:
            await self.connection_pool.ensure_connection(self.connection)
        self.command_stack = [(command, {}) for command in commands]
        answers: list[Any] = await self.execute(raise_on_error=False)
        return answers

    async def reset(self) -> Any:
        """Keep the connection, which redis-py would give back after each batch."""

    async def give_back(self) -> None:
        await super().reset()  # type: ignore[no-untyped-call]


class Packet:
    """One command as it is sent, and the calls that it answers: several only where they are joined."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def command(self, *, in_full: bool = False) -> tuple[Any, ...]:
        first = self.calls[0]
        script = first.joint.script if first.joint else first.script
        if script is None:
            return first.arguments
        by_name = ("EVAL", script.text) if in_full else ("EVALSHA", script.digest)
        if first.joint is None:
            return (*by_name, *first.arguments)
        keys = [*first.joint.keys, *(key for call in self.calls for key in call.keys)]
        arguments = (argument for call in self.calls for argument in call.arguments)
        return (*by_name, len(keys), *keys, *first.joint.arguments, *arguments)

    def must_part(self, answer: Any) -> bool:
        """Say whether the error of one step hides the answers of the others."""
        return len(self.calls) > 1 and isinstance(answer, Exception)

    def hand_out(self, answer: Any) -> None:
        """Give each caller its part, except a caller that was answered apart meanwhile."""
        if self.must_part(answer):
            return
        if self.calls[0].joint is None or isinstance(answer, Exception):
            self.calls[0].settle(answer)
            return
        size = len(answer) // len(self.calls)
        for i, call in enumerate(self.calls):
            call.settle(answer[i * size : (i + 1) * size])


def packed(calls: Iterable[Call]) -> Iterator[Packet]:
    """Put together what can be one command. A second step at the same key comes after the first."""
    packets: dict[Joint, dict[str, Call]] = {}
    for call in calls:
        if call.joint is None:
            yield Packet([call])
            continue
        call_by_key = packets.setdefault(call.joint, {})
        is_full = len(call_by_key) == call.joint.most
        if len(call.keys) > 1:  # each of the steps has as many as it likes
            is_full |= sum(len(one.keys) for one in call_by_key.values()) + len(call.keys) > _MOST_KEYS
        if call_by_key and (is_full or call.keys[0] in call_by_key):
            yield Packet([*call_by_key.values()])
            call_by_key.clear()
        call_by_key[call.keys[0]] = call
    for call_by_key in packets.values():
        yield Packet([*call_by_key.values()])
