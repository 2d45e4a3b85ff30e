"""What the commands that act on subscriptions share: which one is meant.

Refuses to guess: a name that is nearly right is told, not taken.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.settings import Settings, SubscriptionSettings


def subscription_named(settings: "Settings", name: str) -> "SubscriptionSettings":
    """Find a subscription of the configuration. Raises click.UsageError, with the name that may be meant."""
    subscriptions = settings.subscription_by_name
    if name not in subscriptions:
        close = get_close_matches(name, subscriptions, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise click.UsageError(f"no subscription of the configuration is called '{printable(name)}'{hint}")
    return subscriptions[name]


def subscriptions_like(settings: "Settings", others: Iterable[str], glob: str | None) -> list[str]:
    """Name the subscriptions that a glob matches, those of the configuration first; without one, all."""
    names = [*dict.fromkeys([*settings.subscription_by_name, *others])]
    found = [name for name in names if glob is None or fnmatchcase(name, glob)]
    if glob is not None and not found:
        raise click.UsageError(f"no subscription is called '{printable(glob)}'")
    return found
