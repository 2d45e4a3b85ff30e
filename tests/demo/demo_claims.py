"""Changes that were made and the webhooks about them, as the demo's judge sees them."""

from collections.abc import Sequence
from typing import Any

from watcher.demo.judge import Arrival, Balances, Made
from watcher.journal.explain import NOTHING, Vector, in_atoms, in_text
from watcher.receive import InvalidWebhook, Step
from watcher.receiver import Receipt
from watcher.snapshot import Balance

LIKE = Balance("", "", "", "")
STORY_S = 100.0


def a_vector(total: str = "0", locked: str = "0", pending_deposit: str = "0") -> Vector:
    return in_atoms(Balance(total, locked, pending_deposit, "0"))


def a_change(event: str, amount: str, effect: Vector, *, account: str = "treasury", at_s: float = 0) -> Made:
    do = event.replace("pending", "seen")
    return Made(account, "1", "LRC", do, amount, event, effect, STORY_S + at_s)


BASELINE: Balances = {("treasury", "1"): a_vector("1000"), ("alice", "1"): a_vector("7", "2")}


def a_story() -> list[Made]:
    """A deposit and a lock at one account, a lock at another, 1 s apart."""
    return [
        a_change("deposit.pending", "12.5", a_vector(pending_deposit="12.5"), at_s=0),
        a_change("locked.increased", "3", a_vector(locked="3"), account="alice", at_s=1),
        a_change("deposit.cleared", "12.5", a_vector(total="12.5", pending_deposit="-12.5"), at_s=2),
        a_change("locked.increased", "3", a_vector(locked="3"), at_s=3),
    ]


def delivered_webhooks(made: Sequence[Made]) -> list[Arrival]:
    """Each change as one verified webhook, 0.25 s later."""
    last: dict[str, int] = {}
    heard = []
    for number, change in enumerate(made, 1):
        before = balances_after(made[: number - 1], BASELINE)[change.account, change.asset]
        event = an_event(change, number, last.get(change.account), before)
        heard.append(Arrival(a_receipt(event), change.at_s + 0.25))
        last[change.account] = number
    return heard


def an_event(change: Made, sequence: int, previous: int | None, before: Vector) -> dict[str, Any]:
    return {
        "id": f"evt_{sequence}",
        "type": change.event,
        "data": {
            "account": {"name": change.account},
            "asset": {"id": change.asset, "symbol": change.symbol},
            "sequence": sequence,
            "amount": change.amount,
            "effect": in_text(change.effect, LIKE)._asdict(),
            "before": in_text(before, LIKE)._asdict(),
            "after": in_text(before + change.effect, LIKE)._asdict(),
        },
        "subscription": {"name": "demo", "previous_sequence": previous},
    }


def a_receipt(event: dict[str, Any] | None, *, is_verified: bool = True) -> Receipt:
    problem = None if event else InvalidWebhook(Step.NO_MATCH, "signed as v1")
    status = 200 if event else 400
    return Receipt(event, problem, is_verified and event is not None, status, 1, False, None)


def balances_after(made: Sequence[Made], baseline: Balances) -> Balances:
    now = dict(baseline)
    for change in made:
        place = change.account, change.asset
        now[place] = now.get(place, NOTHING) + change.effect
    return now
