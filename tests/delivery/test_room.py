"""How many attempts a subscription may have at the same time, in a process that can bear so many."""

from typing import Any, cast

import pytest

from tests.support.builders import a_subscription
from watcher.delivery.outcomes import Attempt, Verdict, judge
from watcher.delivery.restraint import Restraint
from watcher.store.standings import Noted, Standing

OPS = a_subscription("ops")
MOST = 100
FAILED = Standing(1, 1, 0, 0, "status 500")
HELD = Standing(1, 1, 5000, 0, "status 503")


class Standings:
    """Answers each failure with the same standing."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    async def failed(self, *_: object, **__: object) -> Noted:
        return Noted(self._standing, paused=False, counted=True)

    async def succeeded(self, _name: str) -> int:
        return 1


def a_restraint(standing: Standing = FAILED) -> Restraint:
    return Restraint(cast(Any, Standings(standing)), now_ms=lambda: 6000, alert=cast(Any, None), most=MOST)


def said(status: int) -> Verdict:
    return judge(Attempt(1, status=status), 0, OPS.retries, chance=0)


async def earning(restraint: Restraint, *statuses: int) -> int:
    for status in statuses:
        await restraint.note(OPS, said(status))
    return restraint.room(OPS, 0, 0)


@pytest.mark.parametrize(
    ("statuses", "room"),
    [([], 1), ([200], 2), ([200] * 7, 8), ([200] * 100, 32), ([200, 200, 500], 3)],
)
async def test_each_delivery_earns_one_more_up_to_what_is_set(statuses: list[int], room: int) -> None:
    assert await earning(a_restraint(), *statuses) == room


async def test_one_that_was_left_alone_starts_with_one_again() -> None:
    restraint = a_restraint(HELD)
    assert await earning(restraint, *[200] * 40) == 32
    assert await earning(restraint, 503) == 1
    assert await earning(restraint, 200) == 2


async def test_those_that_have_something_in_flight_leave_a_fifth_to_those_that_have_nothing() -> None:
    restraint = a_restraint()
    await earning(restraint, *[200] * 40)
    assert restraint.room(OPS, 3, 70) == 10
    assert restraint.room(OPS, 3, 80) == 0
    assert restraint.room(OPS, 0, 80) == 20
    assert restraint.room(OPS, 0, MOST) == 0


async def test_of_those_that_fail_none_takes_the_last_fifth() -> None:
    restraint = a_restraint(HELD)
    await restraint.note(OPS, said(503))
    assert (restraint.room(OPS, 0, 79), restraint.room(OPS, 0, 80)) == (1, 0)
