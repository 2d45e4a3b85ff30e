"""`watcher status`: the state of everything on one screen, from Redis alone: no worker has to run.

Refuses to fill more than a screen: of many with the same problem it names a few, and says how many there are.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import in_a_loop, look_options
from watcher.commands._table import (
    IN_STATE,
    Display,
    Fails,
    Progress,
    Waits,
    age_text,
    backlog_text,
    display_options,
    opened,
    rest_texts,
    say_json,
    say_next,
)
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.commands._table import Opened
    from watcher.config.loading import Look

_MOST_NAMES = 6
_MOST_WORKERS = 4
_MOST_SHADOWED = 100
_MOST_ERRORS = 3
_WIDTH = 80
_MARGIN = 15

_WAITING = ("suspect", "pending confirmation")
_USUAL = {"pending confirmation"}
"""The problem of an account that waits for the other half of a movement: it is listed, and healthy."""

_ONLY_RETRIED = 8
"""The severity of a subscription with retried queues: it is listed, and healthy."""

_STATES = {
    "unverified": "unverified: their events wait until their URLs have answered a ping (`watcher ping NAME`)",
    "locked": "encrypted with a key that is not in [api] secret_key",
    "unfit": "not valid beside this configuration: `watcher subscriptions` says why",
    "shadowed": "shadowed: the configuration has the same names, and wins",
    "older_key": "encrypted with an older key: the workers encrypt them again now",
}
"""Records of the API that a person should know of, by state."""

_Line = dict[str, Any]


@click.command("status", short_help="The state of everything, on one screen.")
@look_options
@display_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line, with its `kind`.")
@in_a_loop
async def command(*, look: "Look", display: Display, is_json: bool) -> None:
    """Show the state of everything: Redis and its guarantees, workers, providers, accounts, subscriptions.

    Reads only Redis: no worker has to run. With --json, only accounts with problems have a line.

    \b
    Examples:
      watcher status
      watcher status --json | jq 'select(.kind == "account")'

    Exit codes: 0 whatever the state; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78
    no configuration says where it is.
    """
    lines = await read_lines(look)
    if is_json:
        for line in lines:
            say_json(line)
    else:
        for text in as_text(lines, display.time):
            display.say(text, margin=_MARGIN)
    say_next(next_command(lines))


async def read_lines(look: "Look") -> list[_Line]:
    from watcher.commands.subscriptions import record_of
    from watcher.observe import views
    from watcher.store.address import safe_url
    from watcher.store.exceptions import StoreError
    from watcher.store.guarantee import Guarantee, guarantee_of_all
    from watcher.store.keeper import fullest
    from watcher.store.members import Configurations, Workers
    from watcher.store.queues import Breakers
    from watcher.store.reader import Reader

    async with opened(look) as found:
        store, settings = found.store, found.settings
        reader = Reader(store.pipe, store.keys)
        now_ms = await reader.now_ms()
        try:
            promised: Guarantee | StoreError = await guarantee_of_all(store.pipe)
        except StoreError as refused:
            promised = refused
        workers = await Workers(store.pipe, store.keys).read()
        configurations = Configurations(store.pipe, store.keys)
        digests = {worker.configuration for worker in workers} - {""}
        fingerprints = {digest: await configurations.read(digest) for digest in digests}
        memory = await fullest(store.pipe)
        names = views.providers_of(settings)
        failing = {name: await reader.failing(name) for name in names}
        overdue = {name: await reader.overdue(name) for name in names}
        provider_by_account = {name: one.provider for name, one in settings.account_by_name.items()}
        since_ms = await reader.watched_since_ms()
        with Progress("reading", len(provider_by_account)) as progress:
            states = progress.over(reader.read_states(provider_by_account))
            lines = views.account_lines(settings, states, failing, now_ms, watched_since_ms=since_ms)
            accounts = [line async for line in lines]
        breakers = await Breakers(store.pipe, store.keys).read()
        subscriptions = await views.subscription_lines(
            reader, settings, breakers, now_ms, is_whole=look.is_whole
        )
        for line in subscriptions:
            line |= record_of(found.subscriptions.get(line["subscription"]))
            line["todo"] = views.remedy_of(line)
    url = safe_url(settings.redis.url.get_secret_value())
    place = f"embedded, in {settings.redis.data_dir.absolute()}" if url == "embedded" else url
    return [
        views.server_line(promised, place, memory),
        *(views.worker_line(worker, now_ms) for worker in workers),
        *views.configuration_lines(
            workers, {digest: found for digest, found in fingerprints.items() if found}, now_ms
        ),
        *(
            views.provider_line(name, failing[name], overdue[name], now_ms)
            | views.rate_line(settings, name, views.needed_per_second(settings, name), workers, now_ms)
            for name in names
        ),
        {"kind": "accounts", "accounts": len(settings.account_by_name), "with_problems": len(accounts)},
        *accounts,
        *subscriptions,
        *([directory_line(found)] if found.records else []),
    ]


def directory_line(found: "Opened") -> _Line:
    """Count what came through the API. What needs the key is None without it."""
    from watcher.commands.export import keyring_of

    states = Counter[str](known.state for known in found.subscriptions.values())
    keyring = keyring_of(found.look) if found.look.settings.api else None
    if keyring:
        states["locked"] += sum(
            kind == "account"
            and found.origin(kind, name) == "api"
            and not (keyring.is_current(one.encrypted) or keyring.is_older(one.encrypted))
            for (kind, name), one in found.records.items()
        )
    opened = ("unverified", "locked", "unfit")
    shadowed = [f"{kind} {name}" for kind, name in found.records if found.origin(kind, name) == "file"]
    return {
        "kind": "directory",
        **{f"{kind}s": sum(one == kind for one, _ in found.records) for kind in ("account", "subscription")},
        "shadowed": len(shadowed),
        "shadowed_names": shadowed[:_MOST_SHADOWED],
        **({state: states[state] for state in opened} if keyring else dict.fromkeys(opened)),
        "older_key": sum(keyring.is_older(one.encrypted) for one in found.records.values())
        if keyring
        else None,
    }


def as_text(lines: Sequence[_Line], time: Callable[[str], str] = str) -> Iterator[str]:
    from watcher.observe.views import PROBLEMS

    (server,), (total,) = _of("server", lines), _of("accounts", lines)
    yield _entry("server", server["at"])
    if server["guarantee"]:
        yield _entry("", server["guarantee"])
    for warning in server["warnings"]:
        yield _entry("", f"warning: {warning}", Waits)
    yield from _workers_text(_of("worker", lines), _of("configuration", lines))
    for line in _of("provider", lines):
        yield from _provider_text(line, time)
    with_problems = _of("account", lines)
    well = total["accounts"] - sum({*line["problems"]} != _USUAL for line in with_problems)
    yield _entry("accounts", f"{well:,} of {total['accounts']:,} healthy")
    room = _WIDTH - _MARGIN - len("  pending confirmation      1  ") - len(" and 99,999 more")
    for problem in PROBLEMS:
        if names := [line["account"] for line in with_problems if problem in line["problems"]]:
            ends = accumulate(len(name) + 2 for name in names)
            most = max(1, sum(1 for _ in takewhile(lambda end: end <= room, ends)))
            more = f" and {len(names) - most:,} more" if len(names) > most else ""
            says: type[str] = Waits if problem in _WAITING else Fails
            yield _entry("", f"  {problem:<20}{len(names):>7,}  {', '.join(names[:most])}{more}", says)
    subscriptions = _of("subscription", lines)
    worst = sorted(filter(_severity, subscriptions), key=_severity)
    well = sum(_severity(line) in (0, _ONLY_RETRIED) for line in subscriptions)
    yield _entry("subscriptions", f"{well:,} of {len(subscriptions):,} healthy")
    for line in worst[:_MOST_NAMES]:
        deliveries = many(line["deliveries"], "delivery", "deliveries")
        unknown = "" if line["is_configured"] else "; not in the configuration"
        name, reason = printable(line["subscription"]), printable(line["reason"] or "")
        delayed = "delayed: " if line["state"] == "delayed" else ""
        delayed = "unverified: " if line["record"] == "unverified" else delayed
        says = IN_STATE.get(line["state"], str)
        yield _entry("", f"  {name}: {delayed}{backlog_text(line, deliveries)}{unknown}", says)
        backing_off, pace = rest_texts(line)
        if line["paused_at"]:
            yield _entry("", f"    paused since {time(line['paused_at'])}: {reason}", says)
        elif line["failing_since"]:
            breaker = f"circuit breaker {line['breaker']}{backing_off}"
            yield _entry("", f"    failing since {time(line['failing_since'])}, {breaker}: {reason}", says)
        elif backing_off or pace:
            yield _entry("", f"    {f'{backing_off}{pace}'.removeprefix(', ')}: {reason}", says)
        elif line["record"] == "unverified" and line["ping_error"]:
            yield _entry("", f"    its last ping: {printable(line['ping_error'])}", says)
        elif delayed and reason:
            yield _entry("", f"    failed last: {reason}", says)
        if line["todo"] and line is worst[0]:  # `watcher subscriptions` says it of each
            yield _entry("", f"    what to do: {line['todo']}", says)
    yield from _more(worst, _MOST_NAMES, "; `watcher subscriptions` lists all")
    for line in _of("directory", lines):
        made = f"{many(line['accounts'], 'account')} and {many(line['subscriptions'], 'subscription')}"
        yield _entry("API", f"{made} came through it")
        for state, what in _STATES.items():
            if line[state]:
                yield _entry("", f"  {line[state]:,} {what}")
            if shadowed := line.get(f"{state}_names"):
                yield _entry("", f"    {', '.join(map(printable, shadowed[:_MOST_NAMES]))}")


def _workers_text(lines: Sequence[_Line], differing: Sequence[_Line]) -> Iterator[str]:
    from watcher.observe.views import ROSTERS_DIFFER, rosters_differ

    run = [line for line in lines if line["runs"]]
    if run:
        versions = sorted({printable(line["version"]) for line in run})
        yield _entry("workers", f"{len(run):,} running, version {', '.join(versions)}")
        if rosters_differ(run):
            yield _entry("", f"  {ROSTERS_DIFFER}", Waits)
        for line in differing:
            names = ", ".join(map(printable, line["names"][:_MOST_NAMES]))
            more = len(line["names"]) - _MOST_NAMES
            workers = many(len(line["workers"]), "worker")
            yield _entry("", f"  error: {workers} with another configuration: another target for", Fails)
            yield _entry(
                "",
                f"    {names}{f' and {more:,} more' if more > 0 else ''}: for each, one is inactive",
            )
    else:
        none = "none runs: nothing is polled and nothing delivered; start `watcher run`"
        yield _entry("workers", none, Fails)
    for line in sorted(lines, key=lambda line: (line["runs"], line["worker"]))[:_MOST_WORKERS]:
        seen = f"seen {age_text(1000 * line['unseen_s'])} ago"
        fate = seen if line["runs"] else f"{seen}: it was killed, or cannot reach Redis"
        where = f"{printable(line['host'])} pid {line['pid']}"
        digest = f", configuration {printable(line['configuration'])[:8]}" if line["configuration"] else ""
        where += digest if differing else ""
        yield _entry("", f"  {where}, up {age_text(1000 * line['up_s'])}, {fate}")
    yield from _more(lines, _MOST_WORKERS)


def _provider_text(line: _Line, time: Callable[[str], str]) -> Iterator[str]:
    from watcher.observe.views import TOO_FEW

    failing = f", {line['failing']:,} failing" if line["failing"] else ""
    used, needed, most = (line[f"{name}_per_second"] for name in ("used", "needed", "requests"))
    made = "" if used is None else f", makes {_per_second(used) if needed is None else f'{used:.3g}'}"
    rate = made if needed is None else f"; needs {_per_second(needed)}, {most:g} allowed{made}"
    name = printable(line["provider"])
    yield _entry("provider", f"{name}: {many(line['accounts'], 'account')} scheduled{failing}{rate}")
    for found in line["errors"][:_MOST_ERRORS]:
        reason = f"{printable(found['error_class'])}: {printable(found['reason'])}"
        todo = f": {printable(found['todo'])}" if found["todo"] else ""
        yield _entry("", f"  {found['accounts']:,} {reason}, since {time(found['since'])}{todo}", Fails)
    yield from _more(line["errors"], _MOST_ERRORS)
    if line["too_few_requests"]:
        yield _entry("", f"  {TOO_FEW}", Waits)
    if line["late_s"]:
        late = age_text(1000 * line["late_s"])
        yield _entry("", f"  the next poll is {late} late: does a worker run, and keep up?", Waits)


def _per_second(rate: float) -> str:
    text = f"{rate:.3g}"
    return f"{text} request{'' if text == '1' else 's'}/s"


def _severity(line: _Line) -> int:
    """Return how bad it is: 1 is the worst, 0 is a healthy subscription that needs no line."""
    claims = (
        line["state"] == "paused",
        line["state"] == "failing",
        line["state"] == "backing off",
        line["record"] == "unverified",
        line["state"] == "delayed",
        line["dead"],
        not line["is_configured"],
        line["retrying"],
    )
    return next((number for number, is_so in enumerate(claims, 1) if is_so), 0)


def next_command(lines: Sequence[_Line]) -> str:
    """Return the command that fixes the worst that was found, or shows more of it."""
    subscriptions = _of("subscription", lines)
    paused = [line["subscription"] for line in subscriptions if line["paused_at"]]
    problems = {problem for line in _of("account", lines) for problem in line["problems"]}
    if not any(line["runs"] for line in _of("worker", lines)):
        return "watcher run"
    if any(line["failing"] for line in _of("provider", lines)):
        return "watcher check --connect"
    if paused:
        return f"watcher subscriptions resume {printable(paused[0])}"
    if any(line["state"] != "healthy" for line in subscriptions):
        return "watcher deliveries --attempts"
    if any(line["dead"] for line in subscriptions):
        return "watcher deliveries --dead"
    return "watcher balances" if problems else "watcher events --follow"


def _of(kind: str, lines: Sequence[_Line]) -> list[_Line]:
    return [line for line in lines if line["kind"] == kind]


def _more(lines: Sequence[object], most: int, todo: str = "") -> Iterator[str]:
    if len(lines) > most:
        yield _entry("", f"  and {len(lines) - most:,} more{todo}")


def _entry(title: str, text: str, says: type[str] = str) -> str:
    return says(f"{title:<{_MARGIN}}{text}")
