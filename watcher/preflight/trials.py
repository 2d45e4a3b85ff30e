"""Tries everything that a configuration leads to, side by side and each within a time limit.

Refuses to leave a trace: no state is written, no event is sent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from watcher.delivery.egress import Policy
from watcher.preflight.provider import try_provider
from watcher.preflight.server import try_server
from watcher.preflight.subscriber import try_subscriber
from watcher.preflight.tried import Kind, Tried
from watcher.settings import Settings, SubscriptionSettings

LIMIT_S = 15.0
"""Longer than Redis and a slow handshake take; a provider has its own `timeout` on top."""

_AT_ONCE = 64


class Trial(NamedTuple):
    """One thing to try, and how long that may take."""

    kind: Kind
    name: str
    limit_s: float
    run: Callable[[], AsyncIterator[Tried]]


def trials(settings: Settings, *, limit_s: float = LIMIT_S) -> list[Trial]:
    """List what there is to try: the server, each provider by its first account, each subscriber."""
    egress = settings.egress
    policy = Policy(allow=egress.allow, allow_http=egress.allow_http, nat64=egress.nat64)
    first = {account.provider: account for account in reversed(settings.account_by_name.values())}
    found = [Trial("redis", "redis", limit_s, lambda: try_server(settings.redis))]
    for name, provider in settings.provider_by_name.items():
        patience_s = limit_s + provider.timeout.total_seconds()
        found.append(
            Trial("provider", name, patience_s, lambda p=provider: try_provider(p, first.get(p.name)))  # type: ignore[misc]
        )
    for name, subscription in settings.subscription_by_name.items():
        found.append(Trial("subscription", name, limit_s, lambda s=subscription: _alone(s, policy)))  # type: ignore[misc]
    return found


async def try_all(found: Sequence[Trial], *, done: Callable[[], None]) -> list[Tried]:
    """Run trials side by side; returns their lines in the order given. `done` is called after each."""
    room = asyncio.Semaphore(_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_within(trial, room, done), name=trial.name) for trial in found]
    return [line for task in tasks for line in task.result()]


async def _within(trial: Trial, room: asyncio.Semaphore, done: Callable[[], None]) -> list[Tried]:
    lines: list[Tried] = []
    async with room:
        try:
            async with asyncio.timeout(trial.limit_s):
                async for tried in trial.run():
                    lines.append(tried)  # noqa: PERF401  # what came before the limit is kept
        except TimeoutError:
            text = f"no end within {trial.limit_s:g} s"
            lines.append(
                Tried(trial.kind, trial.name, "failed", text, "look whether it, or the way there, hangs")
            )
    done()
    return lines


async def _alone(subscription: SubscriptionSettings, policy: Policy) -> AsyncIterator[Tried]:
    yield await try_subscriber(subscription, policy)
