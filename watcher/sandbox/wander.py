"""Endless changes by chance: the same seed makes the same changes.

Refuses to wait or to move anything: it gives the next step, and whoever plays it makes it.
"""

from collections.abc import Iterator
from random import Random

from watcher.sandbox.book import Account
from watcher.sandbox.holdings import Holding, ListedAsset
from watcher.sandbox.script import Step
from watcher.sandbox.world import World


def wander(world: World, random: Random, *, every_s: float = 2) -> Iterator[Step]:
    """Give a possible step every so many seconds, each chosen when it is asked for."""
    at = 0.0
    while True:
        at += every_s
        account = random.choice(world.accounts())
        asset = random.choice(world.assets(account.provider))
        do, limit = random.choice(_possible(world, account, asset))
        amount = asset.text(random.randint(1, max(1, limit)))
        yield Step(at, do, account.key, asset.id, amount, _options(do, random))


def _possible(world: World, account: Account, asset: ListedAsset) -> list[tuple[str, int]]:
    """Say what can be done, each with the most smallest units that it can be done with."""
    now, at_last = world.holding(account.key, asset.id), world.holding_at_last(account.key, asset.id)
    holding = Holding(*map(min, now, at_last))
    free = holding.total - holding.locked
    some = max(10, holding.total, 10**asset.decimals) // 10
    choices = [("credit", some), ("debit", free // 4)]
    if account.provider == "loopring" or asset.lockable:
        choices += [("lock", free // 4), ("unlock", holding.locked)]
    if account.provider == "loopring":
        choices += _with_pendings(world, holding, some, free)
    return [(do, limit) for do, limit in choices if limit > 0]


def _with_pendings(world: World, holding: Holding, some: int, free: int) -> list[tuple[str, int]]:
    opened = "withdrawal.requested" if world.withdrawals == "inside" else "withdrawal.debited"
    return [
        ("deposit.seen", some),
        ("deposit.cleared", holding.pending_deposit),
        ("deposit.dropped", holding.pending_deposit // 4),
        (opened, free // 4),
        ("withdrawal.cleared", holding.pending_withdrawal),
        ("withdrawal.returned", holding.pending_withdrawal // 4),
    ]


def _options(do: str, random: Random) -> dict[str, int | str]:
    """Split some of the movements that have two halves, either half first."""
    if do not in ("deposit.cleared", "withdrawal.debited", "withdrawal.returned") or random.random() < 0.7:
        return {}
    return {"split": random.randint(1, 2), "first": random.choice(("pending", "total"))}
