"""Sends what one turn of the event loop asks of Redis as one pipeline: most of the cost is the round trip.

Refuses to reorder or to repeat: a command whose script is unknown to the server is sent again in full,
everything else is answered once, with its result or its error.
"""

import asyncio
import math
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from watcher.store.connect import translated

_MOST = 512
"""Commands in one pipeline: enough to amortize the round trip, few enough not to hold up the rest."""


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic operation, `scripts/<name>.lua`."""

    name: str
    text: str
    digest: str


def load_script(name: str) -> Script:
    text = files("watcher.store").joinpath("scripts", f"{name}.lua").read_text("utf-8")
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(slots=True)
class _Call:
    command: tuple[Any, ...]
    script: Script | None
    answer: asyncio.Future[Any]


class Pipe:
    """Commands and scripts for one server. `run` gathers them; without it each goes out at once."""

    def __init__(self, client: "Redis") -> None:
        self._client = client
        self._waiting: list[_Call] = []
        self._wake = asyncio.Event()
        self._runners = 0

    # Both raise StoreError where the server does not do its part, and redis-py's own errors else.

    async def command(self, *command: Any) -> Any:
        return await self._send(_Call(command, None, asyncio.get_running_loop().create_future()))

    async def script(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        command = (script.digest, len(keys), *keys, *arguments)
        return await self._send(_Call(command, script, asyncio.get_running_loop().create_future()))

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

    async def _send(self, call: _Call) -> Any:
        with translated(self._client):
            if self._runners:
                self._waiting.append(call)
                self._wake.set()
            else:
                await self._execute([call])
            return await call.answer

    def _abandon(self) -> None:
        """Let nobody wait for an answer that no runner is left to fetch."""
        calls, self._waiting = self._waiting, []
        self._wake.clear()
        for call in calls:
            _answer(call, asyncio.CancelledError())

    async def _execute(self, calls: list[_Call]) -> None:
        try:
            answers = await self._pipeline([_by_digest(call) for call in calls])
            unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:
                again = await self._pipeline([_in_full(calls[i]) for i in unknown])
                for i, answer in zip(unknown, again, strict=True):
                    answers[i] = answer
        except BaseException as error:
            for call in calls:
                _answer(call, error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
        else:
            for call, answer in zip(calls, answers, strict=True):
                _answer(call, answer)

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
        await connection.send_packed_command([pack_command(command) for command, _ in commands])
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


def _by_digest(call: _Call) -> tuple[Any, ...]:
    return ("EVALSHA", *call.command) if call.script else call.command


def _in_full(call: _Call) -> tuple[Any, ...]:
    assert call.script is not None
    return ("EVAL", call.script.text, *call.command[1:])


def _answer(call: _Call, answer: Any) -> None:
    if call.answer.done():
        return  # whoever asked was cancelled meanwhile
    if isinstance(answer, asyncio.CancelledError):
        call.answer.cancel()
    elif isinstance(answer, Exception):
        call.answer.set_exception(answer)
    else:
        call.answer.set_result(answer)
