"""Knows whether Redis can be used, and logs when that stops, at intervals while it lasts, and when it is
over; and what Redis guarantees, whenever that changes.

Refuses to decide what to do meanwhile: a caller that failed waits as long as `failed` says, and tries again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from watcher.observe.log import Throttle, log
from watcher.store.exceptions import ConfigurationRefused, ServerRefused, StoreError, StoreRefuses
from watcher.store.guarantee import Guarantee, guarantee_of_all
from watcher.store.pipe import Pipe

_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""A restarted server is found within two seconds, and asking a dead one costs next to nothing."""

_QUIET_S = 2 * _PAUSES_S[-1] + 1
"""A server may refuse only some commands, and a Cluster that lost a part answers for the rest: they count as
back when no caller has failed for so long."""

JUDGE_S = 30.0
"""How often the server is judged again: its settings may change while it runs."""

T = TypeVar("T")


class StoreHealth:
    """Shared by the loops of one worker. `fix` restarts an embedded server that is gone.

    `guarantee` is what the server guarantees, once it was asked. While there is a `refusal`, nothing is
    committed to it, even if it answers.
    """

    def __init__(
        self,
        fix: Callable[[], Awaitable[object]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fix = fix
        self._clock = clock
        self.error: StoreError | None = None
        self.guarantee: Guarantee | None = None
        self.refusal: ServerRefused | None = None
        self._down_since: float | None = None
        self._failed_at = 0.0
        self._throttle, self._refusals = Throttle(), Throttle()
        self._is_partial = False
        self._is_fixing = False
        self._failures = 0
        self._pauses = 0
        self._grow_at = 0.0

    @property
    def is_up(self) -> bool:
        """Whether the server works, as far as any caller has tried."""
        return self._down_since is None

    @property
    def down_s(self) -> float:
        """For how many seconds the server has not worked."""
        return 0.0 if self._down_since is None else self._clock() - self._down_since

    async def failed(self, error: StoreError) -> float:
        """Note a failure. Returns how many seconds to wait before the next try."""
        if isinstance(error, ServerRefused):
            return self._refuse(error)
        self._failed_at = now = self._clock()
        self.error = error
        self._failures += 1
        if now >= self._grow_at:  # callers that fail at the same moment do not wait for longer
            self._pauses += 1
            self._grow_at = now + self._pause_s
        is_answer = isinstance(error, StoreRefuses | ConfigurationRefused)
        event = "store.refusing" if is_answer else "store.unreachable"
        self._is_partial |= is_answer
        if streak := self._throttle.struck((event, error.cause), now):  # another cause is news
            log.error(event, reason=str(error), next_ms=int(1000 * self._pause_s), **streak._asdict())
        self._down_since = now if self._down_since is None else self._down_since
        pause_s = self._pause_s
        if self._fix is None or self._is_fixing:
            return pause_s
        self._is_fixing = True
        try:
            await self._fix()
        except StoreError as still:
            log.debug("store.unreachable", reason=str(still))
        finally:
            self._is_fixing = False
        return pause_s

    @property
    def _pause_s(self) -> float:
        return _PAUSES_S[min(self._pauses, len(_PAUSES_S)) - 1]

    def answered(self, asked_at: float | None = None) -> None:
        """Note that the server answered a caller that asked at `asked_at`, or just now."""
        if self._down_since is None:
            return
        now = self._clock()
        if asked_at is not None and asked_at < self._failed_at:
            return  # before it failed
        if self._is_partial and now - self._failed_at < _QUIET_S:
            return
        log.info("store.recovered", duration_ms=int(1000 * (now - self._down_since)), times=self._failures)
        self._down_since = None
        self._failures = self._pauses = 0
        self._grow_at = 0.0
        self._is_partial = False
        self._throttle.clear()

    def _refuse(self, error: ServerRefused) -> float:
        pause_s = _PAUSES_S[-1]
        if streak := self._refusals.struck("refused", self._clock()):
            log.error("store.refusing", reason=str(error), next_ms=int(1000 * pause_s), **streak._asdict())
        self.refusal = error
        return pause_s

    async def judge(self, pipe: Pipe) -> float:
        """Judge the servers as they are now. Returns in how many seconds to do so again."""
        pipe.verdict.has_connected.clear()
        try:
            found = await guarantee_of_all(pipe)
        except StoreError as error:
            if isinstance(error, ServerRefused):
                pipe.verdict.refusal = error
            return await self.failed(error)
        pipe.verdict.refusal = self.refusal = None
        if streak := self._refusals.over("refused", self._clock()):
            log.info("store.recovered", **streak._asdict())
        self.promised(found)
        return JUDGE_S

    def promised(self, found: Guarantee) -> None:
        """Log what the server guarantees, if that has changed."""
        before, self.guarantee = self.guarantee, found
        if before is None or found.sentence != before.sentence or found.eviction != before.eviction:
            log.info(
                "store.guarantee",
                server=found.server,
                persistence=found.persistence,
                eviction=found.eviction,
                guarantee=found.sentence,
            )
        known = before.warnings if before else ()
        warnings = [warning for warning in found.warnings if warning not in known]
        if before and found.is_weaker_than(before):
            warnings.append(f"it guarantees less than before: {found.sentence}")
        for warning in warnings:
            log.warning("store.weak", server=found.server, reason=warning)

    async def of_parts(self, *asked: Awaitable[T]) -> list[T | None]:
        """Ask for several parts of the state at the same time; None for a part that fails, as when a node is
        gone. Raises StoreError if all of them fail, and any other error."""
        return await self.of_answers(asyncio.gather(*asked, return_exceptions=True))

    async def of_answers(self, asking: Awaitable[Sequence[T | BaseException]]) -> list[T | None]:
        """Do as `of_parts` for answers of one round trip, some of which may be errors."""
        asked_at = self._clock()
        answers = await asking
        errors = [answer for answer in answers if isinstance(answer, StoreError)]
        if errors and len(errors) == len(answers):
            raise errors[0]
        if errors:
            self._is_partial = True
            await self.failed(errors[0])
        elif answers:
            self.answered(asked_at)
        parts: list[T | None] = []
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StoreError):
                raise answer
            parts.append(None if isinstance(answer, BaseException) else answer)
        return parts
