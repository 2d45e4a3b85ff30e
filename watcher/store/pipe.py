"""Sends what one turn of the event loop asks of Redis as one pipeline: most of the cost is the round trip.

Steps of a script that takes several at a time are sent in one call, over all shards unless the server is a
Cluster. An error reaches only the step that caused it: a script fails before it writes, so the steps of a
shard that failed are taken one by one. A command whose script is unknown to the server is sent again in full;
every other one is answered once, with its result or its error.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from time import monotonic, time
from typing import Any, TypeVar

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from watcher.store.errors import DamagedKey, in_our_words, translated, unreadable, where
from watcher.store.exceptions import PartOfCluster, ServerRefused

_MOST_VALUES = 12_000
"""Keys and arguments of a call of several steps: a commit to 2,000 queues has so many, and holds the server
up for 13 ms."""

_FRAME, _PLACE = "groups", "  -- (the script)\n"
"""The script around one that takes the steps of several shards, and the place in it."""

_LISTED_AT_ONCE = 500
"""Keys listed in one call."""

_MOST = 512
"""Commands in one pipeline: enough to amortize the round trip, few enough not to hold up the rest."""

_KEPT = 3
"""Connections: for two runners, and for the look at what is due."""

_FILLING = frozenset({"commit", "enqueue", "put_records"})
"""Scripts that add events, deliveries or records: a server that was refused is not given these."""


@dataclass(slots=True)
class Verdict:
    """How the servers were judged: on each new connection before its first command, and by `StoreHealth`,
    which `has_connected` wakes."""

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
    """Split what would be too much for one command, or for one turn of the event loop."""
    for start in range(0, len(items), at_most):
        yield items[start : start + at_most]


def load_script(name: str) -> Script:
    """Read a script, together with the parts that it says it uses, in front of it or around it."""
    scripts = files("watcher.store").joinpath("scripts")
    text = scripts.joinpath(f"{name}.lua").read_text("utf-8")
    if used := re.search("^-- uses (.+)$", text, re.M):
        parts = {
            part: scripts.joinpath("parts", f"{part}.lua").read_text("utf-8") for part in used[1].split(", ")
        }
        if frame := parts.pop(_FRAME, None):
            text = frame.replace(_PLACE, text)
        text = "".join([*parts.values(), text])
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """What the steps of one shard, and of one provider or subscription, have in common: keys and arguments.

    Both precede those of the steps, and the answer holds as many values for each step. Steps are joined in
    one call if their joints are of the same `Joints`, and each names a first key of its own.
    """

    joints: "Joints"
    keys: tuple[str, ...]
    arguments: tuple[Any, ...]

    @property
    def script(self) -> Script:
        return self.joints.script


_MOST_JOINTS = 20_000
"""Joints kept of one script: names come and go, and another joint is soon made."""


class Joints:
    """The joints of a script that takes steps of several shards in a call, by shard and by the name of a
    provider or subscription. `most` steps in a call limit how long it holds up the server."""

    def __init__(
        self,
        script: Script,
        make: Callable[[int, str], tuple[tuple[str, ...], tuple[Any, ...]]],
        *,
        most: int,
    ) -> None:
        self.script = script
        self.most = most
        self._make = make
        self._made: dict[tuple[int, str], Joint] = {}

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, where: tuple[int, str]) -> Joint:
        joint = self._made.get(where)
        if joint is None:
            if len(self._made) >= _MOST_JOINTS:
                self._made.clear()
            joint = self._made[where] = Joint(self, *self._make(*where))
        return joint


class Call:
    """What one caller asks: the keys and arguments of a step of a joint, or a whole command."""

    __slots__ = ("answer", "arguments", "joint", "keys", "script")
    answer: asyncio.Future[Any]
    """From when it is sent."""

    def __init__(
        self,
        arguments: tuple[Any, ...],
        joint: Joint | None = None,
        keys: tuple[str, ...] = (),
        script: Script | None = None,
    ) -> None:
        self.arguments = arguments
        self.joint = joint
        self.keys = keys
        self.script = script

    @property
    def first_key(self) -> str | None:
        """The key that decides the node: all its keys are in one slot."""
        key = self.keys[:1] or self.joint.keys[:1] if self.joint else self.arguments[1:2]
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
        """Give the caller the answer, or the error that came instead."""
        if self.answer.done():
            return  # its caller was cancelled meanwhile
        if not isinstance(answer, BaseException):
            self.answer.set_result(answer)
        elif isinstance(answer, asyncio.CancelledError):
            self.answer.cancel()
        else:
            self.answer.set_exception(answer)

    def again(self) -> "Call":
        """Copy the call, to be answered again."""
        return Call(self.arguments, self.joint, self.keys, self.script)


class Pipe:
    """Commands and scripts for one server. `run` gathers them; without it each is sent at once.

    `is_apart`: a call may name keys of one shard only, as on a Cluster; a proxy that hides a Cluster may say
    so later.
    """

    is_cluster = False

    def __init__(self, client: "Redis", verdict: Verdict | None = None, *, is_apart: bool = False) -> None:
        self._client = client
        self.is_apart = is_apart
        self.verdict = verdict or Verdict()
        self._waiting: list[Call] = []
        self._wake = asyncio.Event()
        self._runners = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # of the runners: to ask for it is a system call
        self._pool: Any = client.connection_pool
        self._idle: list[Any] = []
        """Connections that are kept: to take one from the pool and give it back costs 20 µs."""
        self._ahead_ms = (time() - monotonic()) * 1000

    def now_ms(self) -> int:
        """The server's clock, as its answers show it, carried on by a monotonic clock: it never jumps."""
        return int(monotonic() * 1000 + self._ahead_ms)

    def set_clock(self, now_ms: float) -> None:
        """Note the time that an answer of the server shows."""
        self._ahead_ms = now_ms - monotonic() * 1000

    # All raise StoreError where Redis cannot be used now, and otherwise redis-py's ResponseError.

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
        with translated(self._client):
            return await self._pipeline(commands)

    async def script(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        return await self.send(Call((len(keys), *keys, *arguments), script=script))

    async def script_over_shards(self, script: Script, keys: list[str], *arguments: Any) -> Any | None:
        """Run a script on keys of several shards; None if each shard has to be asked by itself."""
        if not self.is_apart:
            try:
                return await self.script(script, keys, *arguments)
            except PartOfCluster:  # behind a proxy that names it as one server: so from now on
                self.is_apart = True
        return None

    def step(self, joint: Joint, keys: tuple[str, ...], *arguments: Any) -> Coroutine[Any, Any, Any]:
        """Take one step of a script that takes several. Returns its part of the answer."""
        return self.send(Call(arguments, joint, keys))  # awaited by the caller: one frame fewer to resume

    async def run(self) -> None:
        """Gather and send until cancelled. Start two, so that one can send while the other waits."""
        task = asyncio.current_task()
        assert task
        self._runners += 1
        self._loop = asyncio.get_running_loop()
        try:
            # Checked: redis-py may swallow a cancellation, as `asyncio.wait_for` does before Python 3.12.
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
            if not self._runners:  # there is no answer to fetch: no caller waits for one
                self._loop = None
                calls, self._waiting = self._waiting, []
                self._wake.clear()
                for call in calls:
                    call.settle(asyncio.CancelledError())

    async def send(self, call: Call) -> Any:
        """Send a call and wait for its answer. A call is sent once; `again` makes a copy of it."""
        call.answer = (self._loop or asyncio.get_running_loop()).create_future()
        try:
            if self._runners:
                if not self._waiting:
                    self._wake.set()
                self._waiting.append(call)
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
        """Send a call to the node of a Cluster to which its keys are just being moved."""
        with translated(self._client):
            command = Packet(call).command(in_full=True)
            _, answer = await self._pipeline([("ASKING",), command], [False, call.is_filling])
            if isinstance(answer, Exception):
                raise answer
            return answer

    async def servers(self) -> list[Redis]:
        """The clients of all servers that hold state."""
        return [self._client]

    async def servers_of(
        self, shards: Sequence[int], key: Callable[[int], str]
    ) -> list[tuple[Redis, Sequence[int]]]:
        """The clients of all servers, each with its shards; `key` names a key of a shard."""
        return [(self._client, shards)]

    async def names(self, pattern: str) -> AsyncIterator[str]:
        """List the keys of a pattern on all servers; those that exist all the time are included, some perhaps
        twice."""
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
        while self._idle:
            await self._pool.release(self._idle.pop())
        await self._client.aclose()

    async def _execute(self, calls: list[Call]) -> None:
        with _answering(calls):
            packets = [*packed(calls, is_apart=self.is_apart)]
            while packets:
                again: list[Packet] = []
                for packet, answer in zip(packets, await self._answers(packets), strict=True):
                    if len(packet.groups) > 1 and isinstance(answer, ResponseError):
                        self.is_apart |= isinstance(in_our_words(answer, where(self._client)), PartOfCluster)
                    again += packet.hand_out(answer)
                packets = again

    async def _answers(self, packets: "list[Packet]") -> list[Any]:
        is_filling = [packet.first.is_filling for packet in packets]
        answers = await self._pipeline([packet.command() for packet in packets], is_filling)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            in_full = [packets[i].command(in_full=True) for i in unknown]
            again = await self._pipeline(in_full, [is_filling[i] for i in unknown])
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        return answers

    async def _pipeline(
        self, commands: Sequence[tuple[Any, ...]], is_filling: Sequence[bool] = ()
    ) -> list[Any]:
        """Ask over a connection, and over a new one if it breaks. What would fill a server that was refused
        is not sent, and the refusal is its answer."""
        connection = self._idle.pop() if self._idle else await self._pool.get_connection()

        async def attempt() -> list[Any]:
            if not connection.is_connected:
                await connection.connect_check_health(check_health=False)  # by which its server is judged
            refusal = self.verdict.refusal
            if not refusal or not any(is_filling):
                return await exchange(connection, commands)
            sent = [command for command, fills in zip(commands, is_filling, strict=True) if not fills]
            answered = iter(await exchange(connection, sent) if sent else ())
            return [refusal if fills else next(answered) for fills in is_filling]

        try:
            await self._pool.ensure_connection(connection)
            answers: list[Any] = await connection.retry.call_with_retry(
                attempt, lambda error: connection.disconnect(error=error)
            )
            return answers
        finally:
            if len(self._idle) < _KEPT:
                self._idle.append(connection)
            else:  # shielded, as a second cancellation would leave it neither free nor in use
                await asyncio.shield(self._pool.release(connection))


class _answering:  # noqa: N801 -- as `errors.translated`
    """Give any error raised inside the block to all calls without an answer: no call waits for ever, and no
    runner ends, which would end the worker."""

    __slots__ = ("_calls",)

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            return False  # and each has its answer
        is_theirs = isinstance(error, Exception)
        for call in self._calls:
            call.settle(error if is_theirs else asyncio.CancelledError())
        return is_theirs


async def exchange(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands over a connection and read the answer of each; errors of the server are answers.

    redis-py would pack in Python, make a task to write, and set a timer for that and for each answer, which
    costs as much as everything else: here one time-out is for all. It closes a connection whose answers are
    not read to the end, also if the reader is cancelled.
    """
    timeout_s, connection.socket_timeout = connection.socket_timeout, None
    try:
        async with asyncio.timeout(timeout_s):
            try:
                await connection.send_packed_command(b"".join(map(pack_command, commands)))
            except RuntimeError as error:  # uvloop raises it if a connection was closed a moment ago
                raise NoConnection("the connection was closed") from error
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
    finally:
        connection.socket_timeout = timeout_s


class Packet:
    """One command as it is sent, and the calls that it answers: several if they are joined."""

    __slots__ = ("first", "groups", "steps", "values")

    def __init__(self, *calls: Call) -> None:
        self.first = calls[0]
        self.groups: dict[Joint, dict[str, Call]] = {}
        self.steps = self.values = 0
        for call in calls:
            self.take(call)

    def take(self, call: Call) -> bool:
        """Make a step part of this command, and say whether it is: not of one that is full, nor as the second
        step at the same key, which comes after it."""
        joint, keys = call.joint, call.keys
        if joint is None:
            return False
        values = self.values + len(keys) + len(call.arguments)
        if self.steps and (self.steps == joint.joints.most or values > _MOST_VALUES):
            return False
        steps = self.groups.get(joint)
        if steps is None:
            steps = self.groups[joint] = {}
        key = keys[0] if keys else ""
        if key in steps:
            return False
        steps[key] = call
        self.steps += 1
        self.values = values
        return True

    def command(self, *, in_full: bool = False) -> tuple[Any, ...]:
        joint, script = self.first.joint, self.first.script
        script = joint.script if joint else script
        if script is None:
            return self.first.arguments
        by_name = ("EVAL", script.text) if in_full else ("EVALSHA", script.digest)
        if joint is None:
            return (*by_name, *self.first.arguments)
        keys: list[str] = []
        arguments: list[Any] = []
        sizes: list[int] = []
        for shared, steps in self.groups.items():
            before = len(keys), len(arguments)
            keys += shared.keys
            arguments += shared.arguments
            for call in steps.values():
                keys += call.keys
                arguments += call.arguments
            sizes += (len(keys) - before[0], len(arguments) - before[1])
        return (*by_name, len(keys), *keys, len(self.groups), *sizes, *arguments)

    def hand_out(self, answer: Any) -> "list[Packet]":
        """Give each caller its part of the answer. Returns what is to be sent again, because the error of one
        group or step hides the answers of the others."""
        if self.first.joint is None or (self.steps == 1 and isinstance(answer, Exception)):
            self.first.settle(answer)
            return []
        groups = [*self.groups.values()]
        if isinstance(answer, Exception):
            if len(groups) > 1:
                return [Packet(*steps.values()) for steps in groups]
            return [*map(Packet, groups[0].values())]
        again: list[Packet] = []
        for steps, part in zip(groups, answer if len(groups) > 1 else [answer], strict=True):
            if part is None:
                again += map(Packet, steps.values())
                continue
            size = len(part) // len(steps)
            for i, call in enumerate(steps.values()):
                call.settle(part[i * size : (i + 1) * size])
        return again


def packed(calls: Iterable[Call], *, is_apart: bool = False) -> Iterator[Packet]:
    """Join what can be one command; for each shard by itself if they are `apart`."""
    packets: dict[Joint | Joints, Packet] = {}
    for call in calls:
        if call.joint is None:
            yield Packet(call)
            continue
        kind = call.joint if is_apart else call.joint.joints
        packet = packets.get(kind)
        if packet and packet.take(call):
            continue
        if packet:
            yield packet
        packets[kind] = Packet(call)
    yield from packets.values()
