"""What a worker claims next. No Redis, no clock: time is an argument."""

import math
from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.engine.dispatch import AT_ONCE, LOOK_S, Capacity, Claim, Dispatch, Key

SHOP, OPS = Key("poll", "shop"), Key("delivery", "ops")
NOW = 1000.0


def served(dispatch: Dispatch, key: Key, capacity: Capacity, now: float, *, found: int = 0) -> list[Claim]:
    """Serve a key that was taken: claims that bring `found` pieces of work each."""
    claims = dispatch.plan(key, capacity, now)
    for claim in claims:
        dispatch.claimed(key, claim.shard, None, now)
        for _ in range(min(found, claim.at_most)):
            dispatch.began(key)
    dispatch.served(key, now)
    return claims


def test_due_work_is_taken_once_and_other_work_is_not() -> None:
    dispatch = Dispatch()
    dispatch.due(SHOP, 3, NOW - 1, NOW)
    dispatch.due(OPS, 5, NOW + 2, NOW)
    assert dispatch.take(NOW) == [SHOP]
    assert dispatch.take(NOW) == [], "it is being claimed for"
    assert served(dispatch, SHOP, Capacity(4), NOW) == [Claim(3, 4)]
    assert dispatch.next_at == NOW + 2
    assert dispatch.take(NOW + 1.9) == []
    assert dispatch.take(NOW + 2) == [OPS]


def test_woken_work_comes_before_work_found_by_a_look() -> None:
    dispatch = Dispatch()
    for number in range(100):
        dispatch.due(Key("delivery", f"s{number}"), 0, NOW, NOW)
    dispatch.wake(OPS, 0, NOW)
    taken = dispatch.take(NOW)
    assert taken[0] == OPS
    assert len(taken) == 1 + AT_ONCE, "a thousand due keys do not delay the next one"


def test_work_ahead_is_what_is_in_hand_and_what_waits_already() -> None:
    dispatch = Dispatch()
    assert dispatch.ahead(OPS, NOW) == 0
    assert dispatch.keys == [], "asking does not make a key known"
    for shard in (3, 3, 5):
        dispatch.wake(OPS, shard, NOW, is_one=True)
    assert dispatch.ahead(OPS, NOW) == 3
    dispatch.take(NOW)
    dispatch.plan(OPS, Capacity(8), NOW)
    assert dispatch.ahead(OPS, NOW) == 5, "claims may bring as many"
    dispatch.claimed(OPS, 3, None, NOW)
    dispatch.claimed(OPS, 5, None, NOW)
    dispatch.began(OPS)
    dispatch.served(OPS, NOW)
    dispatch.wake(OPS, 7, NOW, is_one=True)
    assert dispatch.ahead(OPS, NOW) == 2
    dispatch.ended(OPS, 3, NOW)
    assert dispatch.ahead(OPS, NOW) == 1


def test_work_ahead_is_unknown_if_more_may_wait_or_the_key_backs_off_or_is_another_workers() -> None:
    dispatch = Dispatch(lambda key: key.name != "another's")
    assert dispatch.ahead(Key("delivery", "another's"), NOW) is None
    dispatch.due(OPS, 3, NOW - 1, NOW)
    dispatch.wake(OPS, 5, NOW, is_one=True)
    assert dispatch.ahead(OPS, NOW) is None
    dispatch.take(NOW)
    served(dispatch, OPS, Capacity(0, 5.0), NOW)
    assert dispatch.ahead(OPS, NOW + 4) is None
    dispatch.take(NOW + 5)
    dispatch.plan(OPS, Capacity(2), NOW + 5)
    dispatch.claimed(OPS, 3, None, NOW + 5)
    dispatch.claimed(OPS, 5, None, NOW + 5)
    dispatch.served(OPS, NOW + 5, 2.0)
    assert dispatch.ahead(OPS, NOW + 6) is None
    assert dispatch.ahead(OPS, NOW + 7) == 0


def test_of_work_woken_one_by_one_one_more_than_known_is_claimed() -> None:
    dispatch = Dispatch()
    for shard in (3, 3, 5):
        dispatch.wake(OPS, shard, NOW, is_one=True)
    dispatch.take(NOW)
    assert served(dispatch, OPS, Capacity(20), NOW) == [Claim(3, 3), Claim(5, 2)]
    dispatch.wake(OPS, 3, NOW, is_one=True)
    dispatch.take(NOW)
    assert served(dispatch, OPS, Capacity(20), NOW) == [Claim(3, 2)], "it is counted anew"
    dispatch.wake(OPS, 3, NOW, is_one=True)
    dispatch.take(NOW)
    assert dispatch.plan(OPS, Capacity(1), NOW) == [Claim(3, 1)], "and never more than the capacity"


@pytest.mark.parametrize(
    "what", ["found by looking", "found later", "left by a claim", "not answered", "woken for all"]
)
def test_if_more_may_be_due_the_whole_capacity_is_claimed(what: str) -> None:
    dispatch = Dispatch()
    if what in ("left by a claim", "not answered"):
        dispatch.wake(OPS, 3, NOW, is_one=True)
        dispatch.take(NOW)
        dispatch.plan(OPS, Capacity(20), NOW)
        if what == "left by a claim":
            dispatch.claimed(OPS, 3, 0.0, NOW)
        dispatch.served(OPS, NOW)
    elif what == "woken for all":
        dispatch.wake(OPS, 3, NOW)
    elif what == "found by looking":
        dispatch.due(OPS, 3, NOW - 1, NOW)
    dispatch.wake(OPS, 3, NOW, is_one=True)
    if what == "found later":
        dispatch.due(OPS, 3, NOW - 1, NOW)
    dispatch.take(NOW)
    assert dispatch.plan(OPS, Capacity(20), NOW) == [Claim(3, 20)]


def test_a_queue_that_is_given_back_with_more_in_it_is_one_piece_that_is_due() -> None:
    dispatch = Dispatch()
    dispatch.began(OPS)
    dispatch.ended(OPS, 3, NOW, is_more=True)
    dispatch.take(NOW)
    assert dispatch.plan(OPS, Capacity(20), NOW) == [Claim(3, 2)]


def test_work_that_is_made_due_now_is_claimed_now_where_more_is_due_later() -> None:
    dispatch = Dispatch()
    dispatch.due(SHOP, 3, NOW + 5, NOW)
    dispatch.wake(SHOP, 3, NOW, is_one=True)
    assert dispatch.take(NOW) == [SHOP]


def test_pending_claims_count_as_in_flight_until_they_are_answered() -> None:
    dispatch = Dispatch()
    dispatch.wake(OPS, 3, NOW)
    dispatch.take(NOW)
    dispatch.plan(OPS, Capacity(5), NOW)
    assert (dispatch.in_flight(OPS), dispatch.in_flight_of("delivery")) == (5, 5)
    dispatch.claimed(OPS, 3, None, NOW)
    dispatch.served(OPS, NOW)
    assert (dispatch.in_flight(OPS), dispatch.in_flight_of("delivery")) == (0, 0)


def test_due_keys_take_turns() -> None:
    dispatch = Dispatch()
    keys = [Key("poll", f"p{number}") for number in range(3 * AT_ONCE)]
    taken: Counter[Key] = Counter()
    for turn in range(30):
        now = NOW + turn
        for key in keys:
            dispatch.due(key, 0, NOW, now)
        for key in dispatch.take(now):
            taken[key] += 1
            served(dispatch, key, Capacity(1), now)
    assert set(taken.values()) == {10}, "none is taken more often than another"


def test_the_shard_where_work_has_waited_longest_comes_first() -> None:
    dispatch = Dispatch()
    for shard, since in ((1, 5), (2, 9), (3, 1)):
        dispatch.due(SHOP, shard, NOW - since, NOW)
    dispatch.take(NOW)
    assert [claim.shard for claim in dispatch.plan(SHOP, Capacity(2), NOW)] == [2, 1]


def test_capacity_is_shared_out_over_the_shards() -> None:
    dispatch = Dispatch()
    for shard in range(4):
        dispatch.due(OPS, shard, NOW, NOW)
    dispatch.take(NOW)
    assert [claim.at_most for claim in dispatch.plan(OPS, Capacity(9), NOW)] == [2, 2, 2, 2]


def test_scarce_capacity_goes_to_the_longest_wait_in_any_shard() -> None:
    dispatch = Dispatch()
    dispatch.due(SHOP, 1, NOW - 8, NOW)
    dispatch.due(SHOP, 2, NOW - 1, NOW)
    dispatch.take(NOW)
    claims = dispatch.plan(SHOP, Capacity(2, is_scarce=True), NOW)
    assert {claim.waited_s for claim in claims} == {8 - LOOK_S}, "nor shorter waits at the other shard"


def test_while_something_is_in_hand_few_shards_are_claimed_at() -> None:
    """What is of one shard is also settled together."""
    dispatch = Dispatch()
    for shard in range(16):
        dispatch.due(SHOP, shard, NOW, NOW)
    dispatch.take(NOW)
    assert len(served(dispatch, SHOP, Capacity(64, per_claim=16), NOW, found=1)) == 16
    for shard in range(16):
        dispatch.due(SHOP, shard, NOW, NOW)
    dispatch.take(NOW)
    assert len(dispatch.plan(SHOP, Capacity(32, per_claim=16), NOW)) == 2


def test_few_shards_are_claimed_at_if_each_is_known_to_have_more() -> None:
    dispatch, capacity = Dispatch(), Capacity(64, per_claim=16)

    def claimed_at(now: float, more: Mapping[int, float | None]) -> list[int]:
        dispatch.take(now)
        shards = [claim.shard for claim in dispatch.plan(SHOP, capacity, now)]
        for shard in shards:
            dispatch.claimed(SHOP, shard, more.get(shard, 5.0), now)
        dispatch.served(SHOP, now)
        return shards

    for shard in range(16):
        dispatch.due(SHOP, shard, NOW - shard, NOW)
    overdue = {shard: -float(shard) for shard in range(8, 16)}
    assert len(claimed_at(NOW, overdue)) == 16, "nothing is known of them yet"
    assert claimed_at(NOW, {15: None, 14: 0.0, 13: -1.0, 12: 1.0}) == [15, 14, 13, 12]
    assert claimed_at(NOW, {}) == [11, 10, 9, 8]
    assert claimed_at(NOW, {}) == [13, 14], "those were left with more"
    assert len(claimed_at(NOW + 5, {})) == 15, "work that falls due slowly may be little in each"


def test_a_key_that_backs_off_is_taken_when_that_is_over_or_reset() -> None:
    dispatch = Dispatch()
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.take(NOW)
    assert served(dispatch, OPS, Capacity(0, 60), NOW) == []
    dispatch.due(OPS, 2, NOW, NOW + 1)
    assert dispatch.take(NOW + 59) == []
    assert dispatch.wait_s(OPS, NOW + 59) == 1
    dispatch.reset(OPS)
    dispatch.wake(OPS, 3, NOW + 59)
    assert dispatch.take(NOW + 59) == [OPS]
    assert sorted(claim.shard for claim in dispatch.plan(OPS, Capacity(9), NOW + 59)) == [1, 2, 3]


def test_a_key_that_is_full_is_taken_as_soon_as_something_of_it_ends() -> None:
    dispatch = Dispatch()
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.take(NOW)
    served(dispatch, OPS, Capacity(1), NOW, found=1)
    dispatch.due(OPS, 2, NOW, NOW)
    dispatch.take(NOW)
    served(dispatch, OPS, Capacity(0, 1.0, is_full=True), NOW)
    assert dispatch.take(NOW + 0.5) == []
    dispatch.ended(OPS, 1, NOW + 0.5)
    assert dispatch.take(NOW + 0.5) == [OPS]


def test_a_key_goes_on_backing_off_though_work_of_it_ends() -> None:
    dispatch = Dispatch()
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.take(NOW)
    served(dispatch, OPS, Capacity(1), NOW, found=1)
    dispatch.due(OPS, 2, NOW, NOW)
    dispatch.take(NOW)
    served(dispatch, OPS, Capacity(0, 60), NOW)
    dispatch.ended(OPS, 1, NOW + 1, is_more=True)
    assert dispatch.take(NOW + 59) == []


def test_work_that_ends_with_more_due_is_claimed_for_again() -> None:
    dispatch = Dispatch()
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.take(NOW)
    served(dispatch, OPS, Capacity(1), NOW, found=1)
    dispatch.ended(OPS, 1, NOW)
    assert dispatch.take(NOW) == []
    dispatch.began(OPS)
    dispatch.ended(OPS, 1, NOW, is_more=True)
    assert dispatch.take(NOW) == [OPS]


def test_a_look_that_began_before_a_claim_causes_no_second_one_but_a_commit_does() -> None:
    dispatch = Dispatch()
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.due(OPS, 2, NOW, NOW)
    dispatch.take(NOW)
    for claim in dispatch.plan(OPS, Capacity(9), NOW):
        dispatch.due(OPS, claim.shard, NOW, NOW)
        if claim.shard == 2:
            dispatch.wake(OPS, 2, NOW)
        dispatch.claimed(OPS, claim.shard, None, NOW)
    dispatch.served(OPS, NOW)
    assert dispatch.take(NOW) == [OPS]
    assert dispatch.due_shards(OPS, NOW) == [2]


def test_a_failed_claim_leaves_due_work_as_it_was() -> None:
    dispatch = Dispatch()
    dispatch.due(SHOP, 1, NOW - 5, NOW)
    dispatch.take(NOW)
    dispatch.plan(SHOP, Capacity(9), NOW)
    dispatch.served(SHOP, NOW, wait_s=2)
    assert dispatch.take(NOW + 1.9) == []
    assert dispatch.take(NOW + 2) == [SHOP]
    (claim,) = dispatch.plan(SHOP, Capacity(1, is_scarce=True), NOW + 2)
    assert claim.waited_s == 7 - LOOK_S


def test_waking_work_does_not_shorten_its_recorded_wait() -> None:
    dispatch = Dispatch()
    dispatch.due(SHOP, 1, NOW - 8, NOW)
    dispatch.wake(SHOP, 1, NOW)
    dispatch.take(NOW)
    (claim,) = dispatch.plan(SHOP, Capacity(1, is_scarce=True), NOW)
    assert claim.waited_s == 8 - LOOK_S


def test_a_damaged_shard_backs_off_and_the_others_do_not() -> None:
    dispatch = Dispatch()
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.due(OPS, 2, NOW, NOW)
    dispatch.take(NOW)
    dispatch.plan(OPS, Capacity(9), NOW)
    dispatch.block(OPS, 1, 30, NOW)
    dispatch.claimed(OPS, 2, None, NOW)
    dispatch.served(OPS, NOW)
    dispatch.due(OPS, 1, NOW, NOW + 1)
    dispatch.due(OPS, 2, NOW, NOW + 1)
    assert dispatch.take(NOW + 1) == [OPS]
    assert [claim.shard for claim in served(dispatch, OPS, Capacity(9), NOW + 1)] == [2]
    assert dispatch.take(NOW + 29.9) == []
    assert dispatch.take(NOW + 30) == [OPS]


def test_a_claim_says_when_more_is_due() -> None:
    dispatch = Dispatch()
    dispatch.due(SHOP, 1, NOW, NOW)
    dispatch.take(NOW)
    dispatch.plan(SHOP, Capacity(1), NOW)
    dispatch.claimed(SHOP, 1, 4.0, NOW)
    dispatch.served(SHOP, NOW)
    assert dispatch.next_at == NOW + 4
    assert dispatch.take(NOW + 4) == [SHOP]


def test_another_workers_key_is_neither_taken_nor_remembered() -> None:
    taken_away: set[Key] = set()
    dispatch = Dispatch(lambda key: key not in taken_away)
    dispatch.due(OPS, 1, NOW, NOW)
    taken_away.add(OPS)
    dispatch.due(SHOP, 1, NOW, NOW)
    assert dispatch.take(NOW) == [SHOP]
    dispatch.wake(OPS, 2, NOW)
    assert dispatch.take(NOW) == []
    taken_away.clear()
    dispatch.wake(OPS, 3, NOW)
    dispatch.take(NOW)
    assert [claim.shard for claim in dispatch.plan(OPS, Capacity(9), NOW)] == [3]


def test_it_is_idle_when_nothing_is_in_hand_and_nothing_may_be_claimed() -> None:
    dispatch = Dispatch()
    assert dispatch.is_idle
    dispatch.due(OPS, 1, NOW, NOW)
    assert not dispatch.is_idle
    dispatch.take(NOW)
    assert not dispatch.is_idle
    assert [*dispatch.serving_since()] == [(OPS, NOW)]
    served(dispatch, OPS, Capacity(1), NOW, found=1)
    assert not dispatch.is_idle
    assert (dispatch.in_flight(OPS), dispatch.in_flight_of("delivery"), dispatch.in_flight_of("poll")) == (
        1,
        1,
        0,
    )
    dispatch.ended(OPS, 1, NOW)
    assert dispatch.is_idle
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.take(NOW)
    served(dispatch, OPS, Capacity(0, 60), NOW)
    assert dispatch.is_idle, "it backs off: nothing may be claimed"


class World:
    """Schedules of a few keys beside a dispatch that is to empty them, at any capacity."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.dispatch = Dispatch()
        self.waiting: dict[tuple[Key, int], int] = {}
        self.in_hand: list[tuple[Key, int]] = []
        self.limit_by_key = {key: chance.randint(1, 5) for key in (SHOP, OPS, Key("poll", "loopring"))}
        self.most_by_key: Counter[Key] = Counter()
        self.now = NOW

    def arrive(self) -> None:
        key, shard = self.chance.choice([*self.limit_by_key]), self.chance.randrange(16)
        self.waiting[key, shard] = self.waiting.get((key, shard), 0) + self.chance.randint(1, 3)
        if self.chance.random() < 0.5:
            self.dispatch.wake(key, shard, self.now)

    def look(self) -> None:
        for (key, shard), count in self.waiting.items():
            if count:
                self.dispatch.due(key, shard, self.now, self.now)

    def serve(self) -> None:
        for key in self.dispatch.take(self.now):
            free = self.limit_by_key[key] - self.dispatch.in_flight(key)
            capacity = (
                Capacity(free, is_scarce=self.chance.random() < 0.2)
                if free
                else Capacity(0, 1.0, is_full=True)
            )
            for claim in self.dispatch.plan(key, capacity, self.now):
                if self.chance.random() < 0.1:
                    continue  # the claim failed
                found = min(claim.at_most, self.waiting.get((key, claim.shard), 0))
                self.waiting[key, claim.shard] = self.waiting.get((key, claim.shard), 0) - found
                self.dispatch.claimed(
                    key, claim.shard, 0.0 if self.waiting[key, claim.shard] else None, self.now
                )
                for _ in range(found):
                    self.dispatch.began(key)
                    self.in_hand.append((key, claim.shard))
            self.dispatch.served(key, self.now)
            self.most_by_key[key] = max(self.most_by_key[key], self.dispatch.in_flight(key))

    def end(self) -> None:
        if self.in_hand:
            key, shard = self.in_hand.pop(self.chance.randrange(len(self.in_hand)))
            self.dispatch.ended(key, shard, self.now)

    def wait(self) -> None:
        self.now += self.chance.random()


@given(st.integers(0, 2**32))
def test_whatever_happens_all_due_work_is_done_within_capacity(seed: int) -> None:
    world = World(Random(seed))
    for _ in range(60):
        world.chance.choice([world.arrive, world.look, world.serve, world.end, world.wait])()
    for _ in range(400):  # no more arrives, and it is looked only now and then
        if world.chance.random() < 0.05:
            world.look()
        world.serve()
        world.end()
        world.now += 0.3
    assert not any(world.waiting.values()), "something was forgotten"
    assert not world.in_hand
    assert world.dispatch.is_idle
    for key, most in world.most_by_key.items():
        assert most <= world.limit_by_key[key]


@given(st.integers(0, 2**32))
def test_it_never_sleeps_past_work_that_may_be_claimed(seed: int) -> None:
    """While anything that is known may be claimed, `next_at` is not in the future."""
    world = World(Random(seed))
    for _ in range(80):
        world.chance.choice([world.arrive, world.look, world.serve, world.end, world.wait])()
        dispatch = world.dispatch
        for key in world.limit_by_key:
            if dispatch.wait_s(key, world.now) == 0 and dispatch.due_shards(key, world.now):
                assert dispatch.next_at <= world.now


@pytest.mark.parametrize("count", [1, 1000])
def test_nothing_is_left_behind_by_keys_that_come_and_go(count: int) -> None:
    dispatch = Dispatch()
    for number in range(count):
        dispatch.due(SHOP, 1, NOW + number + 1, NOW + number)
        dispatch.take(NOW + number + 1)
        served(dispatch, SHOP, Capacity(1), NOW + number + 1)
    assert dispatch.next_at == math.inf


def test_pending_claims_take_capacity_from_other_keys() -> None:
    """Else a thousand keys that are claimed for at the same time would each get the last of it."""
    dispatch = Dispatch()
    dispatch.due(OPS, 1, NOW, NOW)
    dispatch.take(NOW)
    dispatch.plan(OPS, Capacity(3), NOW)
    assert dispatch.in_flight_of("delivery") == 3
    dispatch.claimed(OPS, 1, None, NOW)
    dispatch.began(OPS)
    dispatch.served(OPS, NOW)
    assert dispatch.in_flight_of("delivery") == 1


def test_a_key_is_forgotten_with_its_timer_but_not_while_it_is_in_hand() -> None:
    dispatch = Dispatch()
    dispatch.due(OPS, 5, NOW + 2, NOW)
    assert dispatch.forget(OPS)
    assert dispatch.keys == []
    assert dispatch.take(NOW + 3) == []
    dispatch.due(OPS, 5, NOW, NOW + 3)
    assert not dispatch.forget(OPS), "it is to be taken next"
    assert dispatch.take(NOW + 3) == [OPS]
    assert not dispatch.forget(OPS), "it is claimed for"
    served(dispatch, OPS, Capacity(4), NOW + 3, found=1)
    assert not dispatch.forget(OPS), "something of it is in flight"
    dispatch.ended(OPS, 5, NOW + 3)
    assert dispatch.forget(OPS)
    assert dispatch.keys == []
