"""Read every [[subscriptions]]: whom to tell, what, and how it is signed.

Refuses what would fail at every attempt, or harm somebody: hostile URLs, headers that forge or smuggle.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from watcher.config.findings import Entry, Findings, did_you_mean
from watcher.config.tables import (
    MASK,
    Names,
    event_flaw,
    glob_flaw,
    header_flaws,
    leftover_flaw,
    listed_tables,
    settings_of,
    signing_secret_flaw,
)
from watcher.delivery.egress import Policy, RefusedUrl, check_url
from watcher.settings import EgressSettings, SubscriptionSettings

_MOST_LENIENT = Policy(allow=(ip_network("0.0.0.0/0"), ip_network("::/0")), allow_http=True, nat64=True)
"""Stands in for an [egress] with a mistake: what it refuses, every other one refuses too."""


@dataclass(slots=True)
class Subscriptions:
    """What the file says of subscriptions: `by_name` those without a mistake, `entries` all of them."""

    by_name: dict[str, SubscriptionSettings] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)


def read_subscriptions(document: Entry, egress: EgressSettings | None, findings: Findings) -> Subscriptions:
    """Read all subscriptions. Without `egress`, as that section has a mistake, URLs are judged leniently."""
    policy = _MOST_LENIENT
    if egress:
        policy = Policy(allow=egress.allow, allow_http=egress.allow_http, nat64=egress.nat64)
    read = Subscriptions()
    names = Names("subscription", findings)
    for entry in listed_tables(document, "subscriptions", findings):
        read.entries.append(entry)
        settings = settings_of(SubscriptionSettings, _with_secrets_apart(entry), findings)
        _check_values(entry, policy, findings)
        if names.is_new(entry) and settings:
            read.by_name[settings.name] = settings
    known = [name for entry in read.entries if isinstance(name := entry.table.get("name"), str)]
    for entry in read.entries:
        _check_alerts(entry, known, findings)
    return read


def _with_secrets_apart(entry: Entry) -> Entry:
    """A variable or a file may hold several secrets, one a line, while one is rotated: all of them sign."""
    secrets = entry.table.get("secrets")
    if not isinstance(secrets, list):
        return entry
    apart = [part for secret in secrets for part in (_lines(secret) if isinstance(secret, str) else [secret])]
    return replace(entry, table={**entry.table, "secrets": apart})


def _secrets_flaw(text: str) -> str | None:
    return next(filter(None, map(signing_secret_flaw, _lines(text))), None)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()] or [text]


def _check_values(entry: Entry, policy: Policy, findings: Findings) -> None:
    """Check what the shape does not say. Each value alone, so that one mistake does not hide another."""
    url, headers = entry.table.get("url"), entry.table.get("headers")
    flaw = _url_flaw(url, policy) if isinstance(url, str) else None
    if flaw:
        findings.mistake(entry.finding(("url",), flaw))
    if isinstance(headers, dict):
        for key, flaw in header_flaws(headers):
            findings.mistake(entry.finding(("headers", *key), flaw))
    _check_list(entry, "secrets", _secrets_flaw, findings)
    _check_list(entry, "accounts", glob_flaw, findings)
    _check_list(entry, "events", event_flaw, findings)
    _check_list(entry, "assets", glob_flaw, findings)


def _check_list(entry: Entry, name: str, flaw_of: Callable[[str], str | None], findings: Findings) -> None:
    values = entry.table.get(name)
    if not isinstance(values, list):
        return
    for index, value in enumerate(values):
        if not isinstance(value, str):
            continue
        flaw = flaw_of(value)
        if not flaw and value in values[:index]:
            flaw = f"is the same as {name}[{values.index(value)}]"
        if flaw:
            findings.mistake(entry.finding((name, index), flaw))


def _check_alerts(entry: Entry, known: list[str], findings: Findings) -> None:
    """Whoever is told of a pause must be there, and must not be the one that is paused."""
    name = entry.table.get("alerts_to")
    if not isinstance(name, str):
        return
    if name == entry.table.get("name"):
        findings.mistake(
            entry.finding(
                ("alerts_to",), "is this subscription itself, which is told nothing while it is paused"
            )
        )
    elif name not in known:
        meant = did_you_mean(name, [other for other in known if other != entry.table.get("name")])
        findings.mistake(entry.finding(("alerts_to",), f"no [[subscriptions]] of this name{meant}"))


def _url_flaw(url: str, policy: Policy) -> str | None:
    if MASK in url:
        return "holds the mask that is shown instead of a secret"
    if flaw := leftover_flaw(url):
        try:
            check_url(url, _MOST_LENIENT)
        except RefusedUrl:
            return flaw
    reasons = dict.fromkeys(_reasons(url, policy))
    return "; ".join(reasons) or None


def _reasons(url: str, policy: Policy) -> Iterator[str]:
    """Give what is wrong with a URL, and what else would be once [egress] allowed it."""
    for allowed in (
        policy,
        replace(policy, allow_http=True),
        replace(_MOST_LENIENT, allow_http=policy.allow_http),
    ):
        try:
            check_url(url, allowed)
        except RefusedUrl as error:
            yield str(error)
