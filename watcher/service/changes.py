"""What differs between two configurations: how much of each section, and a few names.

Refuses to show a value: any of them may be a secret.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from watcher.settings import Section, Settings

MOST_NAMES = 8

NOT_RELOADED = ("redis", "log")
"""What a worker reads at its start only."""


class Change(NamedTuple):
    """What differs in one section, and the first names: `+new`, `-gone`, `treasury: interval`."""

    section: str
    added: int
    removed: int
    changed: int
    names: tuple[str, ...]


def changes(before: Settings, after: Settings) -> list[Change]:
    """Compare section by section; those that are alike are left out."""
    pairs: Mapping[str, tuple[Mapping[str, Section], Mapping[str, Section]]] = {
        "settings": (_single(before), _single(after)),
        "providers": (before.provider_by_name, after.provider_by_name),
        "accounts": (before.account_by_name, after.account_by_name),
        "subscriptions": (before.subscription_by_name, after.subscription_by_name),
    }
    found = [_change(section, old, new) for section, (old, new) in pairs.items()]
    return [change for change in found if change.names]


def _single(settings: Settings) -> Mapping[str, Section]:
    """The sections of which there is one each, by name."""
    return {name: part for name, part in settings if isinstance(part, Section)}


def _change(section: str, before: Mapping[str, Section], after: Mapping[str, Section]) -> Change:
    added = [name for name in after if name not in before]
    removed = [name for name in before if name not in after]
    changed = [name for name, part in after.items() if name in before and before[name] != part]
    names = _names(
        added, removed, {name: _fields(before[name], after[name]) for name in changed[:MOST_NAMES]}
    )
    return Change(section, len(added), len(removed), len(changed), tuple(islice(names, MOST_NAMES)))


def _names(added: list[str], removed: list[str], changed: Mapping[str, str]) -> Iterator[str]:
    yield from (f"{name}: {fields}" for name, fields in changed.items())
    yield from (f"+{name}" for name in added)
    yield from (f"-{name}" for name in removed)


def _fields(before: Section, after: Section) -> str:
    """Name the keys that differ. A key that one of them lacks, as another kind may, is not set there."""
    old, new = dict(before), dict(after)
    return ", ".join(name for name in {**old, **new} if old.get(name) != new.get(name))
