"""What a worker serves for monitoring: its metrics, whether it lives, and whether it is ready.

A Redis that is down does not make a worker look dead: only readiness asks it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, Literal, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from watcher import __version__
from watcher.engine.breaker import State, backs_off_until_ms, is_closed, pace_per_s, state
from watcher.observe.counters import LAG_BOUNDS_S, POLL_BOUNDS_S, buckets
from watcher.observe.views import Overview, OverviewReader, is_delayed
from watcher.pause import compute, uncollected
from watcher.providers.contract import PERMANENT
from watcher.run.directory import Followed
from watcher.run.worker import Worker
from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS, Settings
from watcher.store.directory import KINDS
from watcher.store.exceptions import StoreError
from watcher.store.keys import Keys
from watcher.store.queues import Breaker
from watcher.store.reader import Reader

POLL_OUTCOMES = ("committed", "unchanged", "rejected", "discarded", "quarantined")
ERROR_CLASSES = ("auth", "configuration", "rate", "transient", "malformed", "gone")
API_OUTCOMES = ("answered", "refused", "failed")
ATTEMPT_OUTCOMES = ("delivered", "retry", "refused")
_BREAKER = {State.HALF_OPEN: 1.0, State.OPEN: 2.0}


class Meaning(NamedTuple):
    """What a metric counts or measures. `is_shared`: all workers of a namespace report the same."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    is_shared: bool = False


METRICS: Mapping[str, Meaning] = {
    "watcher_build_info": Meaning("gauge", "Always 1; the label is the version.", ("version",)),
    "watcher_polls_total": Meaning(
        "counter",
        f"Polls that this worker ended, by outcome: {', '.join(POLL_OUTCOMES)}.",
        ("provider", "outcome"),
    ),
    "watcher_polls_rejected_total": Meaning(
        "counter",
        f"Polls that were rejected, by class of error: {', '.join(ERROR_CLASSES)}.",
        ("provider", "error_class"),
    ),
    "watcher_poll_duration_seconds": Meaning(
        "histogram", "From the start of a poll to its end, the commit included.", ("provider",)
    ),
    "watcher_changes_total": Meaning(
        "counter", "Events that this worker committed, by type.", ("provider", "type")
    ),
    "watcher_attempts_total": Meaning(
        "counter",
        "Attempts of this worker, by outcome: delivered, retry, or refused for the last time.",
        ("subscription", "outcome"),
    ),
    "watcher_breaker_openings_total": Meaning(
        "counter", "How often this worker opened a subscription's circuit breaker.", ("subscription",)
    ),
    "watcher_deliveries_pushed_out_total": Meaning(
        "counter",
        "Deliveries that this worker gave up because more than `max_backlog` waited, or Redis was 85 % full.",
        ("subscription",),
    ),
    "watcher_api_requests_total": Meaning(
        "counter",
        "Requests under /v1 that this worker answered: with 2xx, refused (4xx), or failed (5xx).",
        ("outcome",),
    ),
    "watcher_delivery_lag_seconds": Meaning(
        "histogram", "From the commit of an event to its delivery, retries included."
    ),
    "watcher_requests_in_flight": Meaning("gauge", "Polls and attempts of this worker under way."),
    "watcher_loop_lag_seconds": Meaning(
        "gauge", "How late the event loop was at worst, in the last one to two minutes."
    ),
    "watcher_clock_skew_seconds": Meaning(
        "gauge", "By how much this machine's clock is ahead of that of Redis; compared once a minute."
    ),
    "watcher_log_lines_dropped_total": Meaning("counter", "Log lines lost because they were not read."),
    "watcher_configuration_last_reload_ok": Meaning(
        "gauge", "0 while the last configuration that was read has mistakes, and the one before is in force."
    ),
    "watcher_configuration_differs": Meaning(
        "gauge",
        "Providers, subscriptions and accounts that another worker of the namespace configures differently.",
    ),
    "watcher_stands_by": Meaning(
        "gauge",
        "1 while the worker waits for Redis to be in its layout: it polls and delivers nothing, and the "
        "other metrics of Redis are missing.",
    ),
    "watcher_accounts": Meaning("gauge", "Accounts of the configuration in force.", ("provider",)),
    "watcher_directory_records": Meaning(
        "gauge", "Accounts and subscriptions that programs added, as this worker knows them.", ("kind",)
    ),
    "watcher_directory_locked": Meaning(
        "gauge", "Those that this worker leaves to others: it has no key for them, or cannot use them."
    ),
    "watcher_directory_shadowed": Meaning(
        "gauge", "Those that are not used because the configuration file has their names."
    ),
    "watcher_directory_behind_seconds": Meaning(
        "gauge", "For how long this worker could not read what programs changed; 0 while it can."
    ),
    "watcher_subscriptions_unverified": Meaning(
        "gauge", "Subscriptions whose events wait until their URLs have answered a ping.", is_shared=True
    ),
    "watcher_store_guarantee": Meaning(
        "gauge",
        "Always 1; the labels are how Redis keeps its data, and its maxmemory-policy; missing while "
        "it is refused.",
        ("persistence", "eviction"),
    ),
    "watcher_store_refused": Meaning(
        "gauge",
        "1 while the settings of Redis do not allow a commit: it evicts keys, for example. No account is "
        "polled meanwhile.",
    ),
    "watcher_store_up": Meaning(
        "gauge", "1 while Redis answers and accepts writes; at 0 all metrics below are missing."
    ),
    "watcher_store_memory_ratio": Meaning(
        "gauge",
        "The part of its maxmemory that Redis uses, of the fullest of its servers; missing without a limit.",
        is_shared=True,
    ),
    "watcher_accounts_failing": Meaning(
        "gauge", "Accounts whose last poll was rejected.", ("provider",), is_shared=True
    ),
    "watcher_accounts_rejected": Meaning(
        "gauge",
        "Accounts whose last poll was rejected for what only a person can fix: "
        "auth (a wrong key, a forbidden account), configuration.",
        ("provider", "error_class"),
        is_shared=True,
    ),
    "watcher_accounts_stale": Meaning(
        "gauge",
        "Accounts without a successful poll for three intervals and the time-out, whatever the reason.",
        ("provider",),
        is_shared=True,
    ),
    "watcher_poll_overdue_seconds": Meaning(
        "gauge",
        "For how long the first poll that is due has been waiting to be claimed.",
        ("provider",),
        is_shared=True,
    ),
    "watcher_deliveries_waiting": Meaning(
        "gauge", "Deliveries that wait, at most `max_backlog`.", ("subscription",), is_shared=True
    ),
    "watcher_queues_waiting": Meaning(
        "gauge",
        "Queues with deliveries in them; each account has its own.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_oldest_undelivered_seconds": Meaning(
        "gauge",
        "Age of the oldest delivery that waits, 0 if none does; a long backlog is measured by a sample.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_subscription_failing": Meaning(
        "gauge", "1 while its circuit breaker is not closed.", ("subscription",), is_shared=True
    ),
    "watcher_subscription_breaker": Meaning(
        "gauge", "Its circuit breaker: 0 closed, 1 half-open, 2 open.", ("subscription",), is_shared=True
    ),
    "watcher_subscription_rest_seconds": Meaning(
        "gauge",
        "For how long nothing is sent to it: its circuit breaker is open, or it asked for that by a 429.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_subscription_pace": Meaning(
        "gauge",
        "Attempts a second, over all workers, that its 429 answers allow; 0 if it sent none.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_subscription_delayed": Meaning(
        "gauge",
        "1 while the oldest delivery that waits is older than 30 s, whatever the reason.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_subscription_paused": Meaning(
        "gauge",
        "1 while a subscription gets no attempts until it is resumed.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_dead_letters": Meaning(
        "gauge", "Deliveries that were given up and are kept.", ("subscription",), is_shared=True
    ),
}


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TYPES = (*CHANGE_EVENTS, *(name for name in SERVICE_EVENTS if not name.startswith("subscription.")))
"""Events that a poll may commit; those about subscriptions are emitted elsewhere."""

_Samples = dict[str, Iterable[tuple[Any, ...]]]
"""By name: labels and a value each; for a histogram labels, buckets and a sum."""


class Metrics:
    """The metrics of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._one_at_a_time = asyncio.Lock()
        self._overview = OverviewReader(worker)
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._labels: dict[tuple[str, ...], Labels] = {}
        self._labels_for: Settings | None = None

    async def text(self) -> bytes:
        """Read everything, and write it in the text format of Prometheus."""
        async with self._one_at_a_time:
            with uncollected():
                seen = await self._overview.look()
                # In a thread, line by line: of 10,000 subscriptions there are 160,000 lines.
                return await compute(self._write, seen, is_kept=False)

    def _write(self, seen: Overview | None) -> bytes:
        samples = _of_worker(self._worker)
        if not self._worker.stands_by:
            samples |= {"watcher_store_up": [((), float(seen is not None))]}
        if seen:
            samples |= _of_store(self._worker.settings, seen)
            if followed := self._worker.followed:
                unverified = followed.count("subscription", "unverified")
                samples |= {"watcher_subscriptions_unverified": [((), unverified)]}
        if self._labels_for is not self._worker.settings:  # names come and go
            self._labels = {meaning.labels: Labels(meaning.labels) for meaning in METRICS.values()}
            self._labels_for = self._worker.settings
        figures = Figures()
        told = (
            lines(name, meaning, samples[name], self._labels[meaning.labels], figures)
            for name, meaning in METRICS.items()
            if name in samples
        )
        return "".join(chain.from_iterable(told)).encode() + generate_latest(self._process)


_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Labels(dict[tuple[str, ...], str]):
    """Labels as they are written, by their values: many metrics have the same, and the next scrape has them
    again."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = (*names,)

    def __missing__(self, values: tuple[str, ...]) -> str:
        pairs = zip(self._names, values, strict=True)
        text = ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs])
        text = self[values] = f"{{{text}}}" if text else ""
        return text


class Figures(dict[float, str]):
    """Figures as they are written: most of one scrape are 0."""

    def __missing__(self, figure: float) -> str:
        text = self[figure] = f" {float(figure)!r}\n"
        return text


def lines(
    name: str, meaning: Meaning, samples: Iterable[tuple[Any, ...]], labels: Labels, figures: Figures
) -> Iterator[str]:
    """Write a metric in the text format of Prometheus (0.0.4). The types of prometheus_client would take 20
    times as long."""
    yield f"# HELP {name} {meaning.text}\n# TYPE {name} {meaning.kind}\n"
    if meaning.kind != "histogram":
        for values, figure in samples:
            yield f"{name}{labels[values]}{figures[figure]}"
        return
    bounded = Labels((*meaning.labels, "le"))
    for values, counts, total in samples:
        for bound, count in counts:
            yield f"{name}_bucket{bounded[*values, bound]}{figures[count]}"
        own = labels[values]
        yield f"{name}_count{own}{figures[counts[-1][1]]}{name}_sum{own}{figures[total]}"


def _of_worker(worker: Worker) -> _Samples:
    settings, counters, liveness = worker.settings, worker.counters, worker.liveness
    health = worker.opened.health if worker.opened else None
    found = health.guarantee if health and not health.refusal else None
    providers, subscriptions = settings.provider_by_name, settings.subscription_by_name
    accounts = dict.fromkeys(providers, 0)
    for account in settings.account_by_name.values():
        accounts[account.provider] += 1
    return {
        "watcher_build_info": [((__version__,), 1)],
        "watcher_polls_total": _counts(counters.by_poll, providers, POLL_OUTCOMES),
        "watcher_polls_rejected_total": _counts(counters.by_error_class, providers, ERROR_CLASSES),
        "watcher_changes_total": _counts(counters.by_change, providers, _TYPES),
        "watcher_attempts_total": _counts(counters.by_attempt, subscriptions, ATTEMPT_OUTCOMES),
        "watcher_breaker_openings_total": (((name,), counters.openings[name]) for name in subscriptions),
        "watcher_deliveries_pushed_out_total": (
            ((name,), counters.pushed_out[name]) for name in subscriptions
        ),
        "watcher_api_requests_total": [((word,), counters.by_api_request[word]) for word in API_OUTCOMES],
        "watcher_poll_duration_seconds": [
            (
                (name,),
                buckets(counters.by_duration[name].__getitem__, POLL_BOUNDS_S),
                counters.polling_s[name],
            )
            for name in providers
        ],
        "watcher_delivery_lag_seconds": [
            ((), buckets(counters.by_lag.__getitem__, LAG_BOUNDS_S), counters.lagging_s)
        ],
        "watcher_requests_in_flight": [((), worker.in_flight)],
        "watcher_loop_lag_seconds": [((), liveness.lag_s)],
        "watcher_clock_skew_seconds": [((), liveness.skew_ms / 1000)],
        "watcher_log_lines_dropped_total": [((), liveness.dropped_lines())],
        "watcher_configuration_last_reload_ok": [((), float(not liveness.is_reload_refused))],
        "watcher_stands_by": [((), float(worker.stands_by))],
        "watcher_configuration_differs": [
            ((), len({name for one in worker.differences for name in one.names}))
        ],
        "watcher_accounts": [((name,), count) for name, count in accounts.items()],
        **(_of_directory(worker.followed) if worker.followed else {}),
        "watcher_store_guarantee": [((found.persistence, found.eviction), 1)] if found else [],
        "watcher_store_refused": [((), float(health is not None and health.refusal is not None))],
    }


def _of_directory(followed: Followed) -> _Samples:
    count = followed.count
    return {
        "watcher_directory_records": [((kind,), count(kind)) for kind in KINDS],
        "watcher_directory_locked": [((), sum(count(kind, "locked", "unfit") for kind in KINDS))],
        "watcher_directory_shadowed": [((), sum(count(kind, "shadowed") for kind in KINDS))],
        "watcher_directory_behind_seconds": [((), followed.behind_s)],
    }


def _counts(
    count_by: Mapping[tuple[str, str], int], names: Iterable[str], words: Iterable[str]
) -> Iterable[tuple[Any, ...]]:
    """Count by configured names and our own words only; from zero on, so that the first one is an
    increase."""
    return (((name, word), count_by.get((name, word), 0)) for name in names for word in words)


def _of_store(settings: Settings, seen: Overview) -> _Samples:
    failing = dict.fromkeys(seen.failing, 0)
    refused = Counter[tuple[str, str]]()
    waiting, breakers = seen.waiting, seen.breakers
    for provider, found_by_account in seen.failing.items():
        for name, found in found_by_account.items():
            if name in settings.account_by_name:
                failing[provider] += 1
                refused[provider, found.error_class] += 1
    used, limit = seen.memory
    return {
        "watcher_store_memory_ratio": [((), used / limit)] if limit else [],
        "watcher_accounts_failing": [((name,), count) for name, count in failing.items()],
        "watcher_accounts_rejected": _counts(refused, seen.failing, PERMANENT),
        "watcher_accounts_stale": [((name,), len(accounts)) for name, accounts in seen.stale.items()],
        "watcher_poll_overdue_seconds": [
            ((name,), _age_s(overdue.first_due_ms, seen.now_ms)) for name, overdue in seen.overdue.items()
        ],
        "watcher_deliveries_waiting": (((name,), found.deliveries) for name, found in waiting.items()),
        "watcher_queues_waiting": (((name,), found.queues) for name, found in waiting.items()),
        "watcher_oldest_undelivered_seconds": (
            ((name,), _age_s(found.oldest_sequence, seen.now_ms)) for name, found in waiting.items()
        ),
        "watcher_subscription_failing": (
            ((name,), float(not is_closed(breakers.get(name)))) for name in waiting
        ),
        "watcher_subscription_breaker": (
            ((name,), _BREAKER.get(state(breakers.get(name), seen.now_ms), 0.0)) for name in waiting
        ),
        "watcher_subscription_rest_seconds": (
            ((name,), _rest_s(breakers.get(name), seen.now_ms)) for name in waiting
        ),
        "watcher_subscription_pace": (
            ((name,), pace_per_s(breakers.get(name), seen.now_ms)) for name in waiting
        ),
        "watcher_subscription_delayed": (
            ((name,), float(is_delayed(found, seen.now_ms))) for name, found in waiting.items()
        ),
        "watcher_subscription_paused": (
            ((name,), float(name in breakers and breakers[name].paused_at_ms > 0)) for name in waiting
        ),
        "watcher_dead_letters": (((name,), found.dead) for name, found in waiting.items()),
    }


def _rest_s(breaker: Breaker | None, now_ms: int) -> float:
    """Return for how long nothing is sent; for a pause that is unknown."""
    if state(breaker, now_ms) is State.PAUSED:
        return 0.0
    return max(0.0, backs_off_until_ms(breaker) - now_ms) / 1000


def _age_s(unix_ms: int | None, now_ms: int) -> float:
    return 0.0 if unix_ms is None else max(0, now_ms - unix_ms) / 1000


READY_TIMEOUT_S = 1.0
PROBES = ("/livez", "/readyz")
"""Clients without the token get the status of these: it says no more than a closed port would."""


def routes(worker: Worker) -> Mapping[str, Handler]:
    """What is served, by path."""
    metrics = Metrics(worker)

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=await metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def lives(_: web.Request) -> web.Response:
        return await livez(worker)

    async def is_ready(_: web.Request) -> web.Response:
        return await readyz(worker)

    return {"/metrics": show, "/livez": lives, "/readyz": is_ready}


async def livez(worker: Worker) -> web.Response:
    """Whether all loops turn: 200, or 503 with those that do not. On 503 the worker is to be restarted."""
    stuck = worker.liveness.stuck(time.monotonic())
    if stuck:
        return _no(f"{name} has not turned for {wait_s:.0f} s" for name, wait_s in stuck.items())
    return _ok()


async def readyz(worker: Worker) -> web.Response:
    """Whether work gets done: 200 when the configuration is in force and Redis can be used."""
    if worker.is_stopped:
        return _no(["the worker drains"])
    if worker.opened is None:
        return _no(["starting: no contact with Redis yet"])
    if not worker.has_begun:
        return _no(["starting: the accounts are being scheduled"])
    if worker.opened.health.refusal:
        return _no([str(worker.opened.health.refusal)])
    if worker.opened.health.is_up:
        reader = Reader(worker.opened.schedule.pipe, Keys(worker.settings.redis.namespace))
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                await reader.now_ms()
                return _ok()
        return _no(["Redis cannot be used now"])
    return _no([f"Redis cannot be used now: {worker.opened.health.error}"])


def _ok() -> web.Response:
    return web.Response(text="ok\n")


def _no(reasons: Iterable[str]) -> web.Response:
    return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
