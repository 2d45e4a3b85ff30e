"""Read every [[subscriptions]]: whom to tell, what, and how it is signed.

Refuses what would fail at every attempt, or harm somebody: hostile URLs, headers that forge or smuggle.
"""

from collections.abc import Callable

from watcher.config.findings import Entry, Findings
from watcher.config.rules import MASK, event_flaw, glob_flaw, header_flaws, signing_secret_flaw
from watcher.config.tables import Names, listed_tables, settings_of
from watcher.delivery.egress import Policy, RefusedUrl, check_url
from watcher.settings import EgressSettings, SubscriptionSettings


def read_subscriptions(
    document: Entry, egress: EgressSettings | None, findings: Findings
) -> dict[str, tuple[SubscriptionSettings, Entry]]:
    """Read all subscriptions that are as they should be, by name, with where each was written.

    Without `egress`, because that section has a mistake, nobody can say which URLs are allowed.
    """
    policy = None
    if egress:
        policy = Policy(allow=egress.allow, allow_http=egress.allow_http, nat64=egress.nat64)
    read: dict[str, tuple[SubscriptionSettings, Entry]] = {}
    names = Names("subscription", findings)
    for entry in listed_tables(document, "subscriptions", findings):
        settings = settings_of(SubscriptionSettings, entry, findings)
        _check_values(entry, policy, findings)
        if names.is_new(entry) and settings:
            read[settings.name] = settings, entry
    return read


def _check_values(entry: Entry, policy: Policy | None, findings: Findings) -> None:
    """Check what the shape does not say. Each value alone, so that one mistake does not hide another."""
    url, headers = entry.table.get("url"), entry.table.get("headers")
    flaw = _url_flaw(url, policy) if isinstance(url, str) else None
    if flaw:
        findings.mistake(entry.finding(("url",), flaw))
    if isinstance(headers, dict):
        for key, flaw in header_flaws(headers):
            findings.mistake(entry.finding(("headers", *key), flaw))
    _check_list(entry, "secrets", signing_secret_flaw, findings)
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


def _url_flaw(url: str, policy: Policy | None) -> str | None:
    if MASK in url:
        return "holds the mask that is shown instead of a secret"
    try:
        if policy:
            check_url(url, policy)
    except RefusedUrl as error:
        return str(error)
    return None
