"""Sends what one turn of the event loop asks of Redis as one pipeline: most of the cost is the round trip.

Steps of a script that takes several at a time go in one call: most of what is left is the call. Refuses
to mix up whose fault an error is: where a joint call fails, and a script fails before it writes, each step
is taken by itself. A command whose script is unknown to the server is sent again in full, everything else
is answered once, with its result or its error.
"""

import asyncio
import math
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from watcher.store.batch import Call, Joint, Packet, Script, packed
from watcher.store.errors import DamagedKey, translated, unreadable

_MOST = 512
"""Commands in one pipeline: enough to amortize the round trip, few enough not to hold up the rest."""


class Pipe:
    """Commands and scripts for one server. `run` gathers them; without it each goes out at once."""

    is_cluster = False

    def __init__(self, client: "Redis") -> None:
        self._client = client
        self._waiting: list[Call] = []
        self._wake = asyncio.Event()
        self._runners = 0

    # All raise StoreError where the server does not do its part, and redis-py's ResponseError else.

    async def command(self, *command: Any) -> Any:
        return await self.send(Call(command))

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
            if not self._runners:
                self._abandon()

    async def send(self, call: Call) -> Any:
        """Send a call and wait for its answer. A call is sent once; `again` makes another of it."""
        try:
            with translated(self._client):
                if self._runners:
                    self._waiting.append(call)
                    self._wake.set()
                else:
                    await self._execute([call])
                return await call.answer
        except DamagedKey as damage:
            damage.keys = call.all_keys
            raise

    async def send_where_it_moves(self, call: Call) -> Any:
        """Send a call to the node of a Cluster that is just being given its keys."""
        with translated(self._client):
            command = Packet([call]).command(in_full=True)
            _, answer = await self._pipeline([("ASKING",), command])
            if isinstance(answer, Exception):
                raise answer
            return answer

    async def servers(self) -> list[Redis]:
        """The clients of all servers that state lies on."""
        return [self._client]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _abandon(self) -> None:
        """Let nobody wait for an answer that no runner is left to fetch."""
        calls, self._waiting = self._waiting, []
        self._wake.clear()
        for call in calls:
            call.settle(asyncio.CancelledError())

    async def _execute(self, calls: list[Call]) -> None:
        try:
            packets = list(packed(calls))
            answers = await self._answers(packets)
            apart = [
                packet for packet, answer in zip(packets, answers, strict=True) if packet.must_part(answer)
            ]
            if apart:
                steps = [Packet([call]) for packet in apart for call in packet.calls]
                packets += steps
                answers += await self._answers(steps)
        except BaseException as error:
            for call in calls:
                call.settle(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
        else:
            for packet, answer in zip(packets, answers, strict=True):
                packet.hand_out(answer)

    async def _answers(self, packets: "list[Packet]") -> list[Any]:
        answers = await self._pipeline([packet.command() for packet in packets])
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = await self._pipeline([packets[i].command(in_full=True) for i in unknown])
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        return answers

    async def _pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        async with _Batch(self._client.connection_pool, {}, False, None) as batch:
            for command in commands:
                batch.execute_command(*command)
            answers: list[Any] = await batch.execute(raise_on_error=False)
        return answers


class _Batch(Pipeline):
    """redis-py's pipeline without what costs it most: packing in Python, and a timer for each answer.

    Answers come as the server gives them, which is the same from all servers.
    """

    async def _execute_pipeline(
        self, connection: Any, commands: list[Any], raise_on_error: bool
    ) -> list[Any]:
        packed = b"".join([pack_command(command) for command, _ in commands])
        try:
            await connection.send_packed_command(packed)
        except RuntimeError as error:  # what uvloop says where a connection was closed a moment ago
            raise NoConnection("the connection was closed") from error
        try:
            async with asyncio.timeout(connection.socket_timeout):
                return [await _read(connection) for _ in commands]
        except TimeoutError:
            raise RedisTimeout("no answer in time") from None


async def _read(connection: Any) -> Any:
    """Read one answer, or the error that the server answers, without a time limit of its own."""
    try:
        return await connection.read_response(timeout=math.inf)
    except ResponseError as error:
        return error
    except ValueError as error:
        raise unreadable(error) from None
