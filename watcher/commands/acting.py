"""What the commands that act on subscriptions share: which one is meant.

Refuses to guess: a name that is nearly right is told, not taken.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from watcher.commands.unknown import Unknown

if TYPE_CHECKING:
    from watcher.settings import Settings, SubscriptionSettings


def subscription_named(settings: "Settings", name: str) -> "SubscriptionSettings":
    """Find a subscription of the configuration. Raises Unknown."""
    subscriptions = settings.subscription_by_name
    if name not in subscriptions:
        raise Unknown("subscription of the configuration", name, subscriptions)
    return subscriptions[name]


def subscriptions_like(settings: "Settings", others: Iterable[str], glob: str | None) -> list[str]:
    """Name the subscriptions that a glob matches, those of the configuration first; without one, all."""
    names = [*dict.fromkeys([*settings.subscription_by_name, *others])]
    found = [name for name in names if glob is None or fnmatchcase(name, glob)]
    if glob is not None and not found:
        raise Unknown("subscription", glob, names)
    return found
