"""Reads every [[subscriptions]]: where events are sent, which of them, and how they are signed.

Refuses what would fail at every attempt, or do harm: hostile URLs, headers that forge or smuggle.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from itertools import chain

from watcher.config.findings import Entry, Findings, did_you_mean
from watcher.config.tables import (
    MASK,
    Names,
    check_list,
    event_flaw,
    glob_flaw,
    header_flaws,
    leftover_flaw,
    listed_tables,
    settings_of,
    signing_secret_flaw,
)
from watcher.delivery.egress import Policy, RefusedUrl, check_url
from watcher.delivery.formats.sentences import SLOTS, slots_in
from watcher.journal.interest import Interest
from watcher.settings import FORMATS, EgressSettings, SubscriptionSettings

_MOST_LENIENT = Policy(allow=(ip_network("0.0.0.0/0"), ip_network("::/0")), allow_http=True, nat64=True)
"""Replaces an [egress] with a mistake: what it refuses, every other one refuses too."""


MOST_OF_AN_ACCOUNT = 2000
"""Subscriptions that one account's events go to: all their queues are written in one step of Redis."""


@dataclass(slots=True)
class Subscriptions:
    """What the file says of subscriptions: `by_name` those without a mistake, `entries` all of them."""

    by_name: dict[str, SubscriptionSettings] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)


def read_subscriptions(document: Entry, egress: EgressSettings | None, findings: Findings) -> Subscriptions:
    """Read all subscriptions. Without `egress`, because that section has a mistake, URLs are judged
    leniently."""
    policy = Policy.of(egress) if egress else _MOST_LENIENT
    read = Subscriptions()
    names = Names("subscription", findings)
    for entry in listed_tables(document, "subscriptions", findings):
        read.entries.append(entry)
        settings = read_subscription(entry, policy, findings)
        if names.is_new(entry) and settings:
            read.by_name[settings.name] = settings
    known = [name for entry in read.entries if isinstance(name := entry.table.get("name"), str)]
    for entry in read.entries:
        refuse_alerts(entry, known, findings)
    return read


def read_subscription(entry: Entry, policy: Policy, findings: Findings) -> SubscriptionSettings | None:
    """Read one subscription."""
    table = dict(entry.table)
    if isinstance(secrets := table.get("secrets"), list):
        # A variable or a file may hold several, one a line, while one is rotated: all of them sign.
        lines = (lines_of(secret) if isinstance(secret, str) else [secret] for secret in secrets)
        table["secrets"] = [*chain.from_iterable(lines)]
    settings = settings_of(SubscriptionSettings, replace(entry, table=table), findings)
    _check_values(entry, policy, findings)
    return settings


def refuse_alerts(entry: Entry, known: Collection[str], findings: Findings) -> None:
    """Refuse an `alerts_to` that is no subscription, or the subscription itself."""
    name, alerted = entry.table.get("name"), entry.table.get("alerts_to")
    if not isinstance(alerted, str):
        return
    if alerted == name:
        reason = "is this subscription itself, which gets nothing while it is paused"
        findings.mistake(entry.finding(("alerts_to",), reason))
    elif alerted not in known:
        meant = did_you_mean(alerted, (other for other in known if other != name))
        findings.mistake(entry.finding(("alerts_to",), f"no [[subscriptions]] of this name{meant}"))


def refuse_fan_out(
    document: Entry, accounts: Iterable[str], subscriptions: Subscriptions, findings: Findings
) -> None:
    """Refuse more subscriptions for one account than one step can queue an event for."""
    if len(subscriptions.by_name) <= MOST_OF_AN_ACCOUNT:
        return
    interest = Interest(subscriptions.by_name)
    for account in accounts:
        if (count := len(interest.listeners(account))) > MOST_OF_AN_ACCOUNT:
            reason = f"{count:,} are for account {account}, {MOST_OF_AN_ACCOUNT:,} at most can be"
            findings.mistake(document.finding(("subscriptions",), f"{reason}; name their accounts"))
            return


def lines_of(text: str) -> list[str]:
    """Split the texts into lines: a secret on each."""
    return [line for line in text.splitlines() if line.strip()] or [text]


def _check_values(entry: Entry, policy: Policy, findings: Findings) -> None:
    """Check what the shape does not say. Each value by itself, so that one mistake does not hide another."""
    url, headers = entry.table.get("url"), entry.table.get("headers")
    if isinstance(url, str) and (flaw := _url_flaw(url, policy)):
        findings.mistake(entry.finding(("url",), flaw))
    for key, flaw in header_flaws(headers) if isinstance(headers, dict) else ():
        findings.mistake(entry.finding(("headers", *key), flaw))
    check_list(
        entry,
        "secrets",
        lambda text: next(filter(None, map(signing_secret_flaw, lines_of(text))), None),
        findings,
    )
    check_list(entry, "accounts", glob_flaw, findings)
    check_list(entry, "events", event_flaw, findings)
    check_list(entry, "assets", glob_flaw, findings)
    _check_format(entry, findings)


OWNERS = {"chat": "telegram", "routing_key": "pagerduty"}
"""Which format a key belongs to: only that format accepts it, and needs it."""

_URL_ENDS = {"telegram": "/sendMessage", "pagerduty": "/v2/enqueue"}
_MARKUP_OF_NTFY = ("markdown", "x-markdown", "md", "template", "x-template", "tpl")


def _check_format(entry: Entry, findings: Findings) -> None:
    """Check that a subscription has what its format needs, and nothing that belongs to another one."""
    format_, template = entry.table.get("format", "standard"), entry.table.get("template")
    for key, owner in OWNERS.items():
        if format_ == owner and key not in entry.table:
            findings.mistake(entry.finding((key,), f"is missing: {format_} needs it"))
        elif format_ != owner and format_ in FORMATS and key in entry.table:
            findings.mistake(entry.finding((key,), f"belongs to format {owner}, but format is {format_}"))
    url, end = entry.table.get("url"), _URL_ENDS.get(str(format_), "")
    if isinstance(url, str) and not url.partition("?")[0].endswith(end):
        findings.mistake(entry.finding(("url",), f"must end in {end} for format {format_}"))
    headers = entry.table.get("headers")
    for name in headers if format_ == "ntfy" and isinstance(headers, dict) else ():
        if name.lower() in _MARKUP_OF_NTFY:
            reason = "would show what comes from outside as markup"
            findings.mistake(entry.finding(("headers", name), reason))
    if format_ == "standard":
        if "secrets" not in entry.table:
            findings.mistake(entry.finding(("secrets",), "is missing"))
        elif entry.table["secrets"] == []:
            findings.mistake(entry.finding(("secrets",), "must not be empty"))
        if template is not None:
            reason = "is for messages to people, but format is standard: events are sent as they are"
            findings.mistake(entry.finding(("template",), reason))
    elif format_ in FORMATS and entry.table.get("secrets"):
        findings.warn(entry.finding(("secrets",), "are not used: a message for people is not signed"))
    if isinstance(template, str) and (flaw := _template_flaw(template)):
        findings.mistake(entry.finding(("template",), flaw))


def _template_flaw(template: str) -> str | None:
    if not template.strip() or not template.isprintable():
        return "must be one line of text"
    try:
        slots = [*slots_in(template)]
    except ValueError as error:
        return str(error)
    unknown = next((slot for slot in slots if slot not in SLOTS), None)
    if unknown is None:
        return None
    return f"unknown slot; the slots are {', '.join(SLOTS)}{did_you_mean(unknown, SLOTS)}"


def _url_flaw(url: str, policy: Policy) -> str | None:
    if MASK in url:
        return "holds the mask that is shown instead of a secret"
    if flaw := leftover_flaw(url):
        try:
            check_url(url, _MOST_LENIENT)
        except RefusedUrl:
            return flaw
    # What is wrong with it, and what else would be wrong once [egress] allowed it.
    more_lenient = replace(policy, allow_http=True), replace(_MOST_LENIENT, allow_http=policy.allow_http)
    reasons: dict[str, None] = {}
    for allowed in (policy, *more_lenient):
        try:
            check_url(url, allowed)
        except RefusedUrl as error:
            reasons[str(error)] = None
    return "; ".join(reasons) or None
