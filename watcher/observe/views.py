"""The state of everything a worker does, as plain data for status, the page, metrics and --json."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple

from yarl import URL

from watcher.delivery.sink import remedy_for
from watcher.engine.breaker import BY_HAND, backs_off_until_ms, is_closed, pace_per_s, state
from watcher.journal.account import Entry
from watcher.journal.events import Delivery, amounts_of, iso, shown
from watcher.journal.explain import in_atoms, in_text
from watcher.polling.cadence import patience_ms, stale_since_ms
from watcher.printable import printable
from watcher.providers.contract import PERMANENT, USABLE, provider_class, requests_needed, todo
from watcher.run.worker import Worker
from watcher.settings import PER_SECOND_BY_FORMAT, AccountSettings, Settings, SubscriptionSettings
from watcher.store.exceptions import StoreError
from watcher.store.guarantee import Guarantee
from watcher.store.history import place
from watcher.store.keeper import FULL, fullest
from watcher.store.keys import Keys
from watcher.store.members import Fingerprint, Presence
from watcher.store.polls import Failing
from watcher.store.queues import Breaker, Breakers
from watcher.store.reader import Backlog, DeadLetter, Overdue, Queue, Reader, Seen, Tried

TIMEOUT_S = 2.0
"""Far less than Prometheus waits for a whole scrape (10 s)."""

_FRESH_S = 5.0
"""Several scrapers at the same time cost Redis no more than one."""


class Overview(NamedTuple):
    """The state of Redis at one time (Unix ms of the server)."""

    now_ms: int
    failing: Mapping[str, Mapping[str, Failing]]  # by provider and account
    overdue: Mapping[str, Overdue]  # by provider
    waiting: Mapping[str, Backlog]  # by subscription
    breakers: Mapping[str, Breaker]  # by subscription
    stale: Mapping[str, Collection[str]]  # by provider, accounts; as far as this worker looked
    watched_since_ms: int
    unknown: Mapping[str, Backlog] = {}  # by subscription, of those that are not in this configuration
    memory: tuple[int, int] = (0, 0)  # of the fullest server: bytes in use, and its limit (0: none)


class OverviewReader:
    """What one worker sees of its Redis: only names of the configuration in force."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._seen: Overview | None = None
        self._seen_for: Settings | None = None
        self._fresh_until = 0.0

    async def look(self) -> Overview | None:
        """Read Redis, unless that was just done; None if it is down or slow, or in another layout."""
        settings, opened = self._worker.settings, self._worker.opened
        if opened is None or not opened.health.is_up or self._worker.stands_by:
            return None
        if self._seen and self._seen_for is settings and time.monotonic() < self._fresh_until:
            return self._seen
        pipe, keys = opened.schedule.pipe, Keys(settings.redis.namespace)
        reader, providers = Reader(pipe, keys), [*settings.provider_by_name]
        self._seen, self._seen_for = None, settings
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                memory = await fullest(pipe)
                now_ms, breakers, backlogs, since_ms, failing, overdue = await asyncio.gather(
                    reader.now_ms(),
                    Breakers(pipe, keys).read(),
                    reader.backlogs(settings.subscription_by_name),
                    reader.watched_since_ms(),
                    asyncio.gather(*map(reader.failing, providers)),
                    asyncio.gather(*map(reader.overdue, providers)),
                )
            self._seen = Overview(
                now_ms,
                dict(zip(providers, failing, strict=True)),
                dict(zip(providers, overdue, strict=True)),
                {name: backlogs.pop(name) for name in settings.subscription_by_name},
                breakers,
                {name: self._worker.stale_accounts(name) for name in providers},
                since_ms,
                {name: one for name, one in backlogs.items() if one.queues or one.dead},
                memory,
            )
            self._fresh_until = time.monotonic() + _FRESH_S
        return self._seen


PROBLEMS = ("quarantined", "never read", "stale", "failing", "suspect", "pending confirmation")
"""The problems that an account may have, the worst first."""

_LATE_MS = 10_000
"""A worker claims what is due within a tenth of a second, unless it keeps to a rate limit."""

_ATTEMPT = ("event_id", "event_type", "attempt", "outcome", "status", "error", "duration_ms", "answer")
"""The fields of an attempt that are shown."""

Line = dict[str, Any]
"""One thing and its state, as `status --json` prints it. `kind` says which other fields it has."""


def server_line(found: Guarantee | StoreError, at: str, memory: tuple[int, int]) -> Line:
    """The server, or why no worker would use it; its contents can be read all the same. `memory`: bytes that
    the fullest server uses, and its limit (0: it has none)."""
    used, limit = memory
    of_memory = {"used_bytes": used if limit else None, "limit_bytes": limit or None}
    full = [_full_text(used, limit)] if limit and used > FULL * limit else []
    if isinstance(found, StoreError):
        nothing = dict.fromkeys(("server", "persistence", "eviction", "guarantee"))
        return {"kind": "server", "at": at, **nothing, **of_memory, "warnings": [str(found), *full]}
    return {
        "kind": "server",
        "server": f"{found.engine} {found.version}",
        "at": at,
        "persistence": found.persistence,
        "eviction": found.eviction,
        "guarantee": found.sentence,
        **of_memory,
        "warnings": [*full, *found.warnings],
    }


def _full_text(used: int, limit: int) -> str:
    part, of = f"{100 * used / limit:.0f} %", f"{used / 1e6:,.0f} of {limit / 1e6:,.0f} MB"
    how_full = f"{part} of its memory is used ({of})"
    todo = "raise maxmemory, or find out what else fills it"
    if used >= limit:
        return f"{how_full}: no account is polled until memory is free; deliveries go on; {todo}"
    return f"{how_full}: workers remove the oldest log records, dead letters and deliveries; {todo}"


ROSTERS_DIFFER = "their lists of accounts differ: is a deploy under way?"


def rosters_differ(workers: Iterable[Line]) -> bool:
    """Say whether workers that run have different lists of accounts, by their lines."""
    return len({line["roster"] for line in workers if line["runs"]}) > 1


def worker_line(presence: Presence, now_ms: int) -> Line:
    unseen_ms = max(0, now_ms - presence.seen_ms)
    return {
        "kind": "worker",
        "worker": presence.worker,
        "host": presence.host,
        "pid": presence.pid,
        "version": presence.version,
        "since": iso(presence.since_ms),
        "up_s": max(0, presence.seen_ms - presence.since_ms) // 1000,
        "seen_at": iso(presence.seen_ms),
        "unseen_s": unseen_ms // 1000,
        "runs": presence.is_there(now_ms),
        "roster": presence.roster,
        "configuration": presence.configuration,
    }


def configuration_lines(
    workers: Iterable[Presence], known: Mapping[str, Fingerprint], now_ms: int
) -> Iterator[Line]:
    """Compare each configuration that runs with that of the oldest worker: the names that differ."""
    run = sorted((one for one in workers if one.is_there(now_ms)), key=lambda one: (one.since_ms, one.worker))
    workers_by_digest: dict[str, list[str]] = {}
    for one in run:
        if one.configuration in known:
            workers_by_digest.setdefault(one.configuration, []).append(one.worker)
    first, *others = [*workers_by_digest] or [""]
    for digest in others:
        if names := known[first].differing(known[digest]):
            yield {
                "kind": "configuration",
                "configuration": digest,
                "workers": workers_by_digest[digest],
                "differs_from": first,
                "names": names,
            }


def providers_of(settings: Settings) -> list[str]:
    """Return the providers of a configuration, also those that only its accounts name."""
    named = (account.provider for account in settings.account_by_name.values())
    return [*dict.fromkeys([*settings.provider_by_name, *named])]


def needed_per_second(settings: Settings, name: str) -> float | None:
    """The requests a second that the accounts of a provider need: one poll an interval. It is more while
    something is pending. None where the configuration does not say all of that."""
    provider = settings.provider_by_name.get(name)
    accounts = [account for account in settings.account_by_name.values() if account.provider == name]
    if provider:
        kind = provider_class(provider.kind)
        if all(isinstance(account, kind.Account) for account in accounts):
            return requests_needed(kind(provider), accounts)
    return None


TOO_FEW = "too few requests for so many accounts: raise requests_per_second or intervals"


def rate_line(
    settings: Settings, name: str, needed: float | None, workers: Iterable[Presence], now_ms: int
) -> Line:
    """The requests a second that a provider allows, that its accounts need, and that workers recently made;
    and whether too few are allowed to poll in time. None where that is not known."""
    provider = settings.provider_by_name.get(name)
    measured = [one.requests_per_second for one in workers if one.is_there(now_ms)]
    used = [rates.get(name, 0) for rates in measured if rates]
    return {
        "requests_per_second": provider.requests_per_second if provider else None,
        "needed_per_second": None if needed is None else round(needed, 2),
        "used_per_second": round(sum(used), 2) if used else None,
        "too_few_requests": bool(provider and needed and needed > USABLE * provider.requests_per_second),
    }


def provider_line(name: str, failing: Mapping[str, Failing], overdue: Overdue, now_ms: int) -> Line:
    """The state of a provider. Its `errors`: first those that only a person can fix, then the rest."""
    groups: dict[tuple[str, str], list[int]] = {}
    for found in failing.values():
        groups.setdefault((found.error_class, found.reason), []).append(found.since_ms)
    worst_first = sorted(
        groups.items(), key=lambda group: (group[0][0] not in PERMANENT, -len(group[1]), group[0])
    )
    late_ms = now_ms - overdue.first_due_ms if overdue.first_due_ms is not None else 0
    return {
        "kind": "provider",
        "provider": name,
        "accounts": overdue.accounts,
        "failing": len(failing),
        "errors": [
            {
                "error_class": error_class,
                "reason": reason,
                "todo": todo(error_class, name),
                "accounts": len(since),
                "since": iso(min(since)),
            }
            for (error_class, reason), since in worst_first
        ],
        "late_s": late_ms // 1000 if late_ms >= _LATE_MS else 0,
    }


async def account_lines(
    settings: Settings,
    states: AsyncIterator[Seen],
    failing_by_provider: Mapping[str, Mapping[str, Failing]],
    now_ms: int,
    *,
    watched_since_ms: int,
) -> AsyncIterator[Line]:
    """Yield the accounts that have problems."""
    async for seen in states:
        account = settings.account_by_name[seen.account]
        failing = failing_by_provider[account.provider].get(account.name)
        problems = problems_of(settings, seen, failing, now_ms, watched_since_ms=watched_since_ms)
        if problems:
            yield account_line(account, seen, failing, problems)


def account_line(
    account: AccountSettings, seen: Seen, failing: Failing | None, problems: Sequence[str]
) -> Line:
    state = seen.state
    doubt = None
    if state and state.emptiness:
        doubt = f"lists nothing since {iso(state.emptiness.since_ms)}: it must do so for a minute to count"
    return {
        "kind": "account",
        "account": account.name,
        "provider": account.provider,
        "problems": [*problems],
        "polled_at": iso(state.polled_at_ms) if state and state.polled_at_ms else None,
        "reason": seen.damage or (failing.reason if failing else doubt),
        "rejections": failing.rejections if failing else 0,
        "rejected_since": iso(failing.since_ms) if failing else None,
    }


def problems_of(
    settings: Settings, seen: Seen, failing: Failing | None, now_ms: int, *, watched_since_ms: int
) -> list[str]:
    state, account = seen.state, settings.account_by_name[seen.account]
    provider = settings.provider_by_name.get(account.provider)
    entries = [*state.suspected.values()] if state else []
    polled_at_ms = state.polled_at_ms if state else 0
    is_quarantined = bool(seen.damage) or (failing is not None and failing.error_class == "quarantined")
    stale_since = stale_since_ms(
        polled_at_ms,
        state.stale_since_ms if state else 0,
        watched_since_ms=watched_since_ms,
        patience_ms=patience_ms(account, provider.timeout if provider else timedelta(0)),
        now_ms=now_ms,
    )
    claims = (
        is_quarantined,
        not polled_at_ms and not seen.damage,
        stale_since is not None,
        failing is not None and not is_quarantined,
        any(entry.suspect for entry in entries),
        any(entry.confirmation_polls for entry in entries),
    )
    return [problem for problem, is_so in zip(PROBLEMS, claims, strict=True) if is_so]


def balance_line(entry: Entry) -> Line:
    """The balance of one asset, and the part of it that is pending confirmation."""
    pending = None
    if entry.seen != entry.published:  # few are
        pending = in_atoms(entry.seen) - in_atoms(entry.published)
    return {
        "asset": shown(entry.asset),
        **amounts_of(entry.seen),
        "pending_confirmation": in_text(pending, entry.seen)._asdict() if pending and any(pending) else None,
        "confirmation_polls": entry.confirmation_polls,
        "suspect": entry.suspect and entry.suspect._asdict(),
    }


def attempt_line(subscription: str, tried: Tried, now_ms: int) -> Line:
    """The result of an attempt; `deliveries` of its queue were sent in one message, from that event on."""
    at_ms = place(tried.id)[0]
    said, together = {key: tried.said.get(key) for key in _ATTEMPT}, tried.said.get("deliveries")
    return {
        "kind": "attempt",
        "subscription": subscription,
        "account": tried.account,
        **{key: value if isinstance(value, str | int) else None for key, value in said.items()},
        "deliveries": together if isinstance(together, int) else 1,
        "at": iso(at_ms),
        "age_s": max(0, now_ms - at_ms) // 1000,
    }


def event_of(delivery: Delivery | None) -> Line:
    """Return the event of a delivery; None if it cannot be read."""
    if delivery is None:
        return {"event_id": None, "event_type": None, "sequence": None}
    return {"event_id": delivery.event_id, "event_type": delivery.type, "sequence": delivery.sequence}


def waiting_line(
    subscription: str,
    queue: Queue,
    position: int,
    delivery: Delivery | None,
    breaker: Breaker | None,
    now_ms: int,
) -> Line:
    """The delivery that waits at a position of a queue, counted from 1; the first one has the time when it is
    due."""
    is_paused = breaker is not None and breaker.paused_at_ms > 0
    due_ms = max(queue.due_ms, 0 if is_paused else int(backs_off_until_ms(breaker)))
    is_foreseen = position == 1 and not is_paused
    return {
        "kind": "waiting",
        "subscription": subscription,
        "account": queue.account,
        "position": position,
        **event_of(delivery),
        "age_s": max(0, now_ms - delivery.sequence) // 1000 if delivery else None,
        "failed_attempts": queue.tries if delivery and delivery.entry == queue.tried else 0,
        "due_at": iso(due_ms) if is_foreseen else None,
        "due_in_s": max(0, due_ms - now_ms) // 1000 if is_foreseen else None,
        "paused": is_paused,
    }


def dead_letter_line(subscription: str, letter: DeadLetter, now_ms: int) -> Line:
    return {
        "kind": "dead",
        "subscription": subscription,
        "account": letter.account,
        "event_id": letter.event_id,
        "event_type": letter.delivery.type if letter.delivery else None,
        "sequence": letter.sequence,
        "given_up_at": iso(letter.at_ms),
        "age_s": max(0, now_ms - letter.at_ms) // 1000,
        "reason": letter.reason,
    }


def place_of(settings: Settings, subscription: str) -> str | None:
    """Return scheme, host and port of a subscription's URL: what follows often holds a token. None for a
    subscription that is not configured, or whose URL was not decrypted."""
    if subscription not in settings.subscription_by_name:
        return None
    text = settings.subscription_by_name[subscription].url.get_secret_value()
    return printable(str(URL(text).origin())) if text else None


SUBSCRIPTION_STATES = ("paused", "failing", "backing off", "delayed", "healthy")
"""The states of a subscription, the worst first. Failing: its circuit breaker is not closed. Delayed: its
oldest delivery has waited for long, for no other known reason."""

DELAYED_MS = 30_000

_BACKS_OFF_MS = 5_000
"""A shorter wait is part of any retry."""


def is_delayed(backlog: Backlog, now_ms: int) -> bool:
    """Say whether the oldest delivery that waits is older than 30 s, as far as it was measured."""
    return backlog.oldest_sequence is not None and now_ms - backlog.oldest_sequence > DELAYED_MS


def subscription_line(
    name: str,
    backlog: Backlog,
    breaker: Breaker | None,
    now_ms: int,
    *,
    known: SubscriptionSettings | None,
    is_configured: bool,
    failed_last: str | None = None,
) -> Line:
    """Describe a subscription whose settings are `known` or not; `is_configured`: whether it is configured,
    as far as that is known; `failed_last`: how its latest attempt failed, if the breaker has no reason."""
    oldest = backlog.oldest_sequence
    is_paused = breaker is not None and breaker.paused_at_ms > 0
    until_ms = 0 if is_paused else backs_off_until_ms(breaker)
    most = known and (known.requests_per_second or PER_SECOND_BY_FORMAT[known.format])
    claims = (
        is_paused,
        not is_closed(breaker),
        until_ms - now_ms > _BACKS_OFF_MS,
        is_delayed(backlog, now_ms),
        True,
    )
    return {
        "kind": "subscription",
        "subscription": name,
        "state": next(one for one, is_so in zip(SUBSCRIPTION_STATES, claims, strict=True) if is_so),
        "is_configured": is_configured,
        "format": known and known.format,
        "queues": backlog.queues,
        "deliveries": backlog.deliveries,
        "retrying": backlog.retrying,
        "dead": backlog.dead,
        "oldest_s": None if oldest is None else max(0, now_ms - oldest) // 1000,
        "breaker": state(breaker, now_ms).value,
        "failing_since": _time(breaker and breaker.since_ms),
        "paused_at": _time(breaker and breaker.paused_at_ms),
        "backing_off_s": max(0, int(until_ms) - now_ms) // 1000,
        "per_second": round(min(pace, most or pace), 2) if (pace := pace_per_s(breaker, now_ms)) else None,
        "reason": (breaker.reason if breaker else None) or failed_last,
        "ping_error": (breaker and breaker.ping_error) or None,
    }


def remedy_of(line: Line) -> str | None:
    """Return how to fix a subscription that is sent nothing or less, or whose events wait; None if that is
    unknown, or if there is nothing to do."""
    name, reason = printable(line["subscription"]), line["reason"]
    is_unverified, resume = line.get("record") == "unverified", f"`watcher subscriptions resume {name}`"
    if line["state"] == "paused" and reason == BY_HAND:
        return f"{resume} sends what waits"
    if is_unverified and line["state"] != "paused":
        reason = line["ping_error"]
        rest = f"`watcher ping {name}` shows what it answers; workers ping it for a day, and "
        rest += f"`POST /v1/subscriptions/{name}/ping` does so at once"
    elif not reason or line["state"] == "healthy":
        return None
    elif line["state"] == "paused":
        rest = f"then {resume}"
    else:
        rest = f"`watcher ping {name}` tries it; {resume} sends what waits at once"
    mend = remedy_for(reason, is_signed=line["format"] in (None, "standard")) if reason else None
    return f"{mend}; {rest}" if mend else rest


_MOST_REASONS = 20


async def unsaid_reasons(
    reader: Reader, backlogs: Mapping[str, Backlog], breakers: Mapping[str, Breaker], now_ms: int
) -> dict[str, str | None]:
    """Return how the latest attempt failed, by subscription: of the first few that are delayed without a
    reason from the breaker, whose receiver may refuse one event after the other. Each takes 16 requests to
    Redis."""
    delayed = (name for name, each in backlogs.items() if each.retrying and is_delayed(each, now_ms))
    unsaid = (name for name in delayed if name not in breakers or not breakers[name].reason)
    names = [*islice(unsaid, _MOST_REASONS)]
    return dict(zip(names, await asyncio.gather(*map(reader.last_failure, names)), strict=True))


async def subscription_lines(
    reader: Reader,
    settings: Settings,
    breakers: Mapping[str, Breaker],
    now_ms: int,
    *,
    is_whole: bool,
    others: Iterable[str] = (),
) -> list[Line]:
    """Describe the subscriptions that are configured, or have a backlog or dead letters, and `others`. If the
    configuration is not whole (`is_whole`), every one with a backlog counts as configured.
    """
    backlogs = await reader.backlogs(settings.subscription_by_name)
    configured = settings.subscription_by_name if is_whole else backlogs
    # The index may still name subscriptions without a backlog.
    owed = [name for name, each in backlogs.items() if name in configured or each.queues or each.dead]
    reasons = await unsaid_reasons(reader, backlogs, breakers, now_ms)
    return [
        subscription_line(
            name,
            backlogs.get(name, Backlog()),
            breakers.get(name),
            now_ms,
            known=settings.subscription_by_name.get(name),
            is_configured=not is_whole or name in configured,
            failed_last=reasons.get(name),
        )
        for name in dict.fromkeys([*owed, *others])
    ]


def _time(unix_ms: int | None) -> str | None:
    return iso(unix_ms) if unix_ms else None
