"""What `watcher status` shows people: its lines as text, and the command that comes next.

Refuses to fill more than a screen: of whatever is the matter with many it names a few, and says how many.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, takewhile
from typing import Any

from watcher.commands._table import age_text
from watcher.observe.views import TROUBLES
from watcher.printable import many, printable
from watcher.providers.contract import USABLE

_MOST_NAMES = 6
_MOST_WORKERS = 4
_MOST_TROUBLES = 3
_WIDTH = 80
_MARGIN = 15

_SOON_S = 30
"""What waits for no longer is under way: a lease may have to end first."""

_Line = dict[str, Any]


def as_text(lines: Sequence[_Line]) -> Iterator[str]:
    yield from _server_text(lines[0])
    yield from _workers_text(_of("worker", lines), _of("configuration", lines))
    for line in _of("provider", lines):
        yield from _provider_text(line)
    (total,) = _of("accounts", lines)
    yield from _accounts_text(total, _of("account", lines))
    yield from _subscriptions_text(_of("subscription", lines))


def _of(kind: str, lines: Sequence[_Line]) -> list[_Line]:
    return [line for line in lines if line["kind"] == kind]


def _server_text(line: _Line) -> Iterator[str]:
    yield _entry("server", line["at"])
    if line["guarantee"]:
        yield _entry("", line["guarantee"])
    for warning in line["warnings"]:
        yield _entry("", f"warning: {warning}")


def _workers_text(lines: Sequence[_Line], differing: Sequence[_Line]) -> Iterator[str]:
    run = [line for line in lines if line["runs"]]
    if run:
        versions = sorted({printable(line["version"]) for line in run})
        yield _entry("workers", f"{len(run):,} running, version {', '.join(versions)}")
        if len({line["roster"] for line in run}) > 1:
            yield _entry("", "  their lists of accounts differ: is a deploy under way?")
        for line in differing:
            names = ", ".join(map(printable, line["names"][:_MOST_NAMES]))
            more = len(line["names"]) - _MOST_NAMES
            workers = many(len(line["workers"]), "worker")
            yield _entry("", f"  error: {workers} with another configuration: another target for")
            yield _entry(
                "", f"    {names}{f' and {more:,} more' if more > 0 else ''}: of each, one side is inactive"
            )
    else:
        yield _entry("workers", "none runs: nothing is polled and nothing delivered; start `watcher run`")
    for line in sorted(lines, key=lambda line: (line["runs"], line["worker"]))[:_MOST_WORKERS]:
        seen = f"seen {age_text(1000 * line['unseen_s'])} ago"
        fate = seen if line["runs"] else f"{seen}: it ended without a word, or cannot reach the server"
        where = f"{printable(line['host'])} pid {line['pid']}"
        digest = f", configuration {printable(line['configuration'])[:8]}" if line["configuration"] else ""
        where += digest if differing else ""
        yield _entry("", f"  {where}, up {age_text(1000 * line['up_s'])}, {fate}")
    yield from _more(lines, _MOST_WORKERS)


def _provider_text(line: _Line) -> Iterator[str]:
    failing = f", {line['failing']:,} failing" if line["failing"] else ""
    used, needed, most = (line[f"{name}_per_second"] for name in ("used", "needed", "requests"))
    made = "" if used is None else f", makes {used:.3g}{' requests/s' if needed is None else ''}"
    rate = made if needed is None else f"; needs {needed:.3g} of {most:g} requests/s{made}"
    name = printable(line["provider"])
    yield _entry("provider", f"{name}: {many(line['accounts'], 'account')} scheduled{failing}{rate}")
    for found in line["troubles"][:_MOST_TROUBLES]:
        reason = f"{printable(found['trouble'])}: {printable(found['reason'])}"
        todo = f": {printable(found['todo'])}" if found["todo"] else ""
        yield _entry("", f"  {found['accounts']:,} {reason}, since {found['since']}{todo}")
    yield from _more(line["troubles"], _MOST_TROUBLES)
    if needed is not None and needed > USABLE * most:
        yield _entry("", "  too few requests for so many accounts: raise requests_per_second or intervals")
    if line["late_s"]:
        late = age_text(1000 * line["late_s"])
        yield _entry("", f"  the next poll is {late} late: does a worker run, and keep up?")


def _accounts_text(total: _Line, in_trouble: Sequence[_Line]) -> Iterator[str]:
    well = total["accounts"] - len(in_trouble)
    yield _entry("accounts", f"{well:,} of {total['accounts']:,} as they should be")
    for trouble in TROUBLES:
        names = [line["account"] for line in in_trouble if trouble in line["troubles"]]
        if names:
            yield _entry("", f"  {trouble:<12}{len(names):>7,}  {_some(names)}")


def _subscriptions_text(lines: Sequence[_Line]) -> Iterator[str]:
    """Those that something is the matter with, the worst first; of the others how many there are."""
    worst = sorted((line for line in lines if _severity(line)), key=_severity)
    well = len(lines) - len(worst)
    yield _entry("subscriptions", f"{well:,} of {len(lines):,} as they should be")
    for line in worst[:_MOST_NAMES]:
        yield from _subscription_text(line)
    yield from _more(worst, _MOST_NAMES, "; `watcher subscriptions` lists all")


def _severity(line: _Line) -> int:
    """Say how bad it is, from 1 on; 0 where a subscription gets what is for it."""
    claims = (
        line["paused_at"],
        line["failing_since"],
        line["retrying"],
        (line["oldest_s"] or 0) > _SOON_S,
        line["dead"],
        not line["is_configured"],
    )
    return next((number for number, is_so in enumerate(claims, 1) if is_so), 0)


def _subscription_text(line: _Line) -> Iterator[str]:
    waits = "nothing waits"
    if line["queues"]:
        deliveries = many(line["deliveries"], "delivery", "deliveries")
        oldest = "" if line["oldest_s"] is None else f", the oldest for {age_text(1000 * line['oldest_s'])}"
        waits = f"{deliveries} in {many(line['queues'], 'queue')}{oldest}"
    retrying = f"; {many(line['retrying'], 'queue')} being tried again" if line["retrying"] else ""
    dead = f"; {many(line['dead'], 'dead letter')}" if line["dead"] else ""
    unknown = "" if line["is_configured"] else "; not in the configuration"
    yield _entry("", f"  {printable(line['subscription'])}: {waits}{retrying}{dead}{unknown}")
    if line["paused_at"]:
        yield _entry("", f"    paused since {line['paused_at']}: {printable(line['reason'])}")
    elif line["failing_since"]:
        held = f", backing off for {age_text(1000 * line['held_s'])}" if line["held_s"] else ""
        yield _entry("", f"    failing since {line['failing_since']}{held}: {printable(line['reason'])}")


def next_command(lines: Sequence[_Line]) -> str:
    """The command that does something about the worst that was found, or tells more of it."""
    subscriptions = _of("subscription", lines)
    paused = [line["subscription"] for line in subscriptions if line["paused_at"]]
    troubled = {trouble for line in _of("account", lines) for trouble in line["troubles"]}
    if not any(line["runs"] for line in _of("worker", lines)):
        return "watcher run"
    if any(line["failing"] for line in _of("provider", lines)):
        return "watcher check --connect"
    if paused:
        return f"watcher subscriptions resume {printable(paused[0])}"
    if any(line["retrying"] or line["failing_since"] for line in subscriptions):
        return "watcher deliveries --attempts"
    if any(line["dead"] for line in subscriptions):
        return "watcher deliveries --dead"
    return "watcher balances" if troubled else "watcher events --follow"


def _some(names: Sequence[str]) -> str:
    """As many names as fit into a line, one at least."""
    room = _WIDTH - _MARGIN - len("  never read        1  ") - len(" and 99,999 more")
    shown = [*takewhile(lambda end: end <= room, accumulate(len(name) + 2 for name in names))]
    most = max(1, len(shown))
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _more(lines: Sequence[object], most: int, todo: str = "") -> Iterator[str]:
    if len(lines) > most:
        yield _entry("", f"  and {len(lines) - most:,} more{todo}")


def _entry(title: str, text: str) -> str:
    return f"{title:<{_MARGIN}}{text}"
