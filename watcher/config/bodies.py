"""Turns an account or a subscription that comes as JSON into settings, or into all its mistakes.

The models and the words are those of a file. Refuses to look anything up: `${NAME}` is text here, and no file
is read.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any

from watcher.config.files import NoObject, json_object
from watcher.config.findings import DEEPEST, Entry, Finding, Findings, pointer
from watcher.config.sections import Providers, Source, read_account
from watcher.config.subscriptions import read_subscription, refuse_alerts
from watcher.config.tables import SectionT, settings_of
from watcher.delivery.egress import Policy
from watcher.settings import AccountSettings, SubscriptionSettings

Table = dict[str, Any]


class BodyRefused(ValueError):
    """A body cannot be used. `findings` are all its mistakes; the key of each is a JSON pointer."""

    def __init__(self, findings: Collection[Finding]) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = tuple(findings)


def read_table(body: bytes, *, named: str | None) -> Table:
    """Read a body as one JSON object with the name `named`: it may contain that name, and no other. None: it
    must contain a name. Raises BodyRefused."""
    try:
        table = json_object(body.decode())
    except UnicodeDecodeError as error:
        raise BodyRefused([flaw("", f"not UTF-8 text at byte {error.start + 1}")]) from None
    except NoObject as error:
        raise BodyRefused([flaw(pointer(error.key), str(error))]) from None
    below: list[Any] = [table]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in below)
        below = [one for one in chain.from_iterable(inner) if isinstance(one, dict | list)]
    if below:
        raise BodyRefused([flaw("", "nested too deeply")])
    if named is not None and table.setdefault("name", named) != named:
        raise BodyRefused([flaw("/name", "is not the name in the path")])
    return table


def account_of(
    table: Mapping[str, Any], providers: Providers, holder: Callable[[Source], str | None]
) -> tuple[AccountSettings, Source | None]:
    """Read an account, and its source. `holder` returns the account that polls a source. Raises
    BodyRefused."""
    entry, findings = _entry(table), Findings()
    account, source = read_account(entry, providers, findings)
    other = holder(source) if source else None
    if other is not None and other != table.get("name"):
        findings.mistake(entry.finding((), f"is the same account at the same provider as {other}"))
    if findings.mistakes or not account:
        raise BodyRefused(findings.mistakes)
    return account, source


def subscription_of(table: Mapping[str, Any], policy: Policy, names: Collection[str]) -> SubscriptionSettings:
    """Read a subscription; `names` are those that `alerts_to` may refer to. Raises BodyRefused."""
    entry, findings = _entry(table), Findings()
    subscription = read_subscription(entry, policy, findings)
    refuse_alerts(entry, names, findings)
    if findings.mistakes or not subscription:
        raise BodyRefused(findings.mistakes)
    return subscription


def _entry(table: Mapping[str, Any]) -> Entry:
    return Entry(table, "", (), lambda _: None, write=pointer)


def section_of(model: type[SectionT], table: Mapping[str, Any]) -> SectionT:
    """Read any other section. Raises BodyRefused."""
    findings = Findings()
    section = settings_of(model, _entry(table), findings)
    if findings.mistakes or not section:
        raise BodyRefused(findings.mistakes)
    return section


def flaw(key: str, text: str) -> Finding:
    """Make a finding about a body, at a JSON pointer."""
    return Finding("", None, key, text)
