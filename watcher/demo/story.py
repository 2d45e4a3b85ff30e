"""What happens at the providers during the demonstration, and which event each change must become.

Refuses to move anything: it is data. It leaves both accounts able to live through the sandbox's own script.
"""

from typing import NamedTuple

from watcher.sandbox import Step
from watcher.sandbox.scene import ALICE, TREASURY


class Scene(NamedTuple):
    """One change. `event` is the type that it must be told as; None where nothing may be told.

    `heading` is what the audience should know from here on.
    """

    step: Step
    event: str | None
    heading: str = ""


def _treasury(do: str, amount: str, asset: str, event: str, *, heading: str = "", split: int = 0) -> Scene:
    return Scene(Step(0, do, TREASURY, asset, amount, {"split": split} if split else {}), event, heading)


def _alice(do: str, amount: str, asset: str, event: str, *, heading: str = "") -> Scene:
    return Scene(Step(0, do, ALICE, asset, amount), event, heading)


def _fault(provider: str, fault: str, *, heading: str) -> Scene:
    return Scene(Step(0, "fault", options={"provider": provider, "fault": fault}), None, heading)


STORY = (
    _treasury("deposit.seen", "12.5", "LRC", "deposit.pending", heading="A deposit at Loopring"),
    _treasury("deposit.cleared", "12.5", "LRC", "deposit.cleared"),
    _treasury(
        "withdrawal.requested",
        "0.4",
        "ETH",
        "locked.increased",
        heading="A withdrawal; its end is told two polls late, as the money might still come back",
    ),
    _treasury("withdrawal.debited", "0.4", "ETH", "withdrawal.pending"),
    _treasury("withdrawal.cleared", "0.4", "ETH", "withdrawal.cleared"),
    _alice("lock", "100", "ZBVS", "locked.increased", heading="A lock at MetaKeep"),
    _fault("loopring", "unavailable", heading="Loopring fails once, and nobody reads that as zero"),
    _treasury(
        "withdrawal.debited", "1200", "USDC", "withdrawal.pending", heading="A withdrawal that comes back"
    ),
    _treasury("withdrawal.returned", "1200", "USDC", "withdrawal.returned"),
    _treasury(
        "deposit.seen",
        "7.25",
        "LRC",
        "deposit.pending",
        heading="A deposit whose halves show a poll apart: still one event",
    ),
    _treasury("deposit.cleared", "7.25", "LRC", "deposit.cleared", split=1),
    _alice("unlock", "100", "ZBVS", "locked.decreased", heading="The lock goes, and 30 digits come: exactly"),
    _alice("credit", "123456789012.345678901234567891", "POL", "total.increased"),
)
"""Withdrawals are pending outside `total`, as is the default of settings and sandbox alike."""
