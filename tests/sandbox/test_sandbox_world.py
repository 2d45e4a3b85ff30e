"""The world's movements are exact, refuse what is impossible, and split as configured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.sandbox.book import Half, Holding, Impossible, ListedAsset, Move
from watcher.sandbox.world import World, empty_world


def a_world(**totals: int) -> World:
    world = empty_world()
    world.open_account(10110)
    for symbol, total in totals.items():
        world.set(10110, symbol, total=total)
    return world


def an_inside_world(**totals: int) -> World:
    world = a_world(**totals)
    world.withdrawals = "inside"
    return world


def lrc(world: World) -> tuple[int, ...]:
    return tuple(world.holding(10110, "LRC"))


def test_a_deposit_is_seen_then_cleared() -> None:
    world = a_world(LRC=100)
    world.deposit_seen(10110, "1", 5)
    assert lrc(world) == (100, 0, 5, 0)
    world.deposit_cleared(10110, "1", 5)
    assert lrc(world) == (105, 0, 0, 0)


def test_a_deposit_can_be_dropped_in_part() -> None:
    world = a_world(LRC=100)
    world.deposit_seen(10110, "1", 5)
    world.deposit_dropped(10110, "1", 2)
    assert lrc(world) == (100, 0, 3, 0)


@pytest.mark.parametrize(
    ("first", "meanwhile"), [("pending", (100, 0, 0, 0)), ("total", (105, 0, 5, 0))], ids=str
)
def test_the_second_half_shows_when_so_many_polls_were_answered(
    first: Half, meanwhile: tuple[int, ...]
) -> None:
    world = a_world(LRC=100)
    world.deposit_seen(10110, "1", 5)
    world.deposit_cleared(10110, "1", 5, split=2, first=first)
    seen = []
    for _ in range(3):
        seen.append(lrc(world))
        world.polled(10110)
    assert seen == [meanwhile, meanwhile, (105, 0, 0, 0)]


def test_splits_may_overlap() -> None:
    world = a_world(LRC=100)
    world.deposit_seen(10110, "1", 7)
    world.deposit_cleared(10110, "1", 5, split=1)
    world.deposit_cleared(10110, "1", 2, split=2)
    seen = []
    for _ in range(3):
        seen.append(lrc(world))
        world.polled(10110)
    assert seen == [(100, 0, 0, 0), (105, 0, 0, 0), (107, 0, 0, 0)]


def test_only_polls_of_the_same_account_show_the_second_half() -> None:
    world = a_world(LRC=100)
    world.open_account(10111, LRC=1)
    world.deposit_seen(10110, "1", 5)
    world.deposit_cleared(10110, "1", 5, split=1)
    world.polled(10111)
    assert lrc(world) == (100, 0, 0, 0)


def test_settling_shows_the_remaining_halves() -> None:
    world = a_world(LRC=100)
    world.deposit_seen(10110, "1", 5)
    world.deposit_cleared(10110, "1", 5, split=9)
    world.settle(10110)
    assert lrc(world) == (105, 0, 0, 0)


def test_a_pending_cannot_clear_twice_while_its_second_half_waits() -> None:
    world = a_world(LRC=100)
    world.deposit_seen(10110, "1", 5)
    world.deposit_cleared(10110, "1", 5, split=3, first="total")
    with pytest.raises(Impossible, match=r"deposit\.dropped: pending_deposit of LRC"):
        world.deposit_dropped(10110, "1", 1)


def test_a_late_debit_waits_for_the_late_credit_that_pays_for_it() -> None:
    world = a_world(LRC=0)
    world.deposit_seen(10110, "1", 5)
    world.deposit_cleared(10110, "1", 5, split=3)
    world.withdrawal_debited(10110, "1", 5, split=1)
    for _ in range(3):
        world.polled(10110)
    world.polled(10110)
    assert lrc(world) == (0, 0, 0, 5)


def test_outside_a_withdrawal_locks_then_leaves_then_clears() -> None:
    world = a_world(LRC=100)
    world.withdrawal_requested(10110, "1", 30)
    assert lrc(world) == (100, 30, 0, 0)
    world.withdrawal_debited(10110, "1", 30)
    assert lrc(world) == (70, 0, 0, 30)
    world.withdrawal_cleared(10110, "1", 30)
    assert lrc(world) == (70, 0, 0, 0)


def test_outside_a_withdrawal_may_come_back() -> None:
    world = a_world(LRC=100)
    world.lock(10110, "1", 10)
    world.withdrawal_debited(10110, "1", 30)
    assert lrc(world) == (70, 10, 0, 30), "a lock that no request made stays"
    world.withdrawal_returned(10110, "1", 30)
    assert lrc(world) == (100, 10, 0, 0)


def test_inside_a_withdrawal_leaves_total_when_it_clears() -> None:
    world = an_inside_world(LRC=100)
    world.withdrawal_requested(10110, "1", 30)
    assert lrc(world) == (100, 30, 0, 30)
    world.withdrawal_cleared(10110, "1", 10)
    assert lrc(world) == (90, 20, 0, 20)
    world.withdrawal_returned(10110, "1", 20)
    assert lrc(world) == (90, 0, 0, 0)


def test_inside_a_request_may_lock_nothing() -> None:
    world = an_inside_world(LRC=100)
    world.withdrawal_requested(10110, "1", 30, lock=False)
    assert lrc(world) == (100, 0, 0, 30)
    world.withdrawal_cleared(10110, "1", 30, split=1, first="total")
    assert lrc(world) == (70, 0, 0, 30)


def test_inside_nothing_is_debited_before_it_clears() -> None:
    with pytest.raises(Impossible, match=r"leaves at withdrawal\.cleared"):
        an_inside_world(LRC=100).withdrawal_debited(10110, "1", 1)


def test_an_overdrawing_movement_is_refused_and_nothing_moves() -> None:
    world = a_world(LRC=100)
    with pytest.raises(Impossible, match=r"debit: total of LRC would fall to -0\.000000000000000001"):
        world.debit(10110, "1", 101)
    assert lrc(world) == (100, 0, 0, 0)


def test_set_allows_impossible_balances() -> None:
    world = a_world(LRC=100)
    world.set(10110, "1", total=5, locked=9, pending_withdrawal=1)
    assert lrc(world) == (5, 9, 0, 1)


def test_set_names_the_fields_it_knows() -> None:
    with pytest.raises(Impossible, match="not available"):
        a_world(LRC=100).set(10110, "1", available=5)


@pytest.mark.parametrize(
    ("amount", "units"), [(5, 5), ("5", 5_000_000), ("0.000001", 1), ("12.5", 12_500_000)], ids=repr
)
def test_an_int_is_smallest_units_and_text_is_whole_units(amount: int | str, units: int) -> None:
    world = a_world()
    world.credit(10110, "USDC", amount)
    assert world.holding(10110, "USDC").total == units


@pytest.mark.parametrize(
    "amount", [-1, "-1", "", "1e3", "+1", " 1", "1.", ".5", "01", "0.0000001", "٣", "1\n"]
)
def test_an_inexact_amount_is_refused(amount: int | str) -> None:
    with pytest.raises(Impossible):
        a_world().credit(10110, "USDC", amount)


def test_assets_are_found_by_id_in_any_case_or_by_symbol() -> None:
    world = empty_world()
    world.open_account("bob@example.com", MK="2")
    for name in (
        "MK",
        "0x1456b21890f920110190063921f6bc7f7b027fa6",
        "0X1456B21890F920110190063921F6BC7F7B027FA6",
    ):
        assert world.holding("bob@example.com", name).total == 2 * 10**18


def test_an_id_wins_over_a_symbol() -> None:
    world = World()
    world.list_asset("loopring", ListedAsset("7", "8", "a token called 8", 0))
    wanted = world.list_asset("loopring", ListedAsset("8", "7", "a token called 7", 0))
    assert world.asset("loopring", "8") is wanted


def test_accounts_are_found_by_key_or_address() -> None:
    world = empty_world()
    account = world.open_account(10110, address="0xABCDEF0000000000000000000000000000000001")
    assert world.account(10110) == account
    assert world.account("0xabcdef0000000000000000000000000000000001") == account
    assert world.account_at("metakeep", account.address) is None


@pytest.mark.parametrize("name", [10199, "nobody@example.com"])
def test_an_unknown_account_is_named(name: int | str) -> None:
    with pytest.raises(Impossible, match=f"no account {name}"):
        a_world().credit(name, "LRC", 1)


def test_an_unlisted_asset_names_the_listed_ones() -> None:
    with pytest.raises(Impossible, match="it lists ETH, LRC"):
        a_world().credit(10110, "DOGE", 1)


def test_accounts_and_assets_are_set_up_once() -> None:
    world = a_world()
    with pytest.raises(Impossible, match="already has"):
        world.open_account(10110)
    with pytest.raises(Impossible, match="already lists"):
        world.list_asset("loopring", ListedAsset("1", "X", "X", 0))
    with pytest.raises(Impossible, match="whole numbers"):
        world.list_asset("loopring", ListedAsset("0x1", "X", "X", 0))


def test_every_half_is_reported_as_it_shows() -> None:
    shown: list[Move] = []
    world = a_world(LRC=100)
    world.on_move = shown.append
    world.deposit_seen(10110, "1", 5)
    world.deposit_cleared(10110, "1", 5, split=1)
    world.polled(10110)
    assert [(move.do, tuple(move.effect)) for move in shown] == [
        ("deposit.seen", (0, 0, 5, 0)),
        ("deposit.cleared", (0, 0, -5, 0)),
        ("deposit.cleared", (5, 0, 0, 0)),
    ]
    assert shown[-1].after == Holding(total=105)


def test_a_copy_moves_alone_and_reports_nothing() -> None:
    shown: list[Move] = []
    world = a_world(LRC=100)
    world.on_move = shown.append
    copy = world.copy()
    copy.credit(10110, "1", 1)
    assert (lrc(world), lrc(copy), shown) == ((100, 0, 0, 0), (101, 0, 0, 0), [])


@given(
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.integers(0, 4),
    st.sampled_from(("pending", "total")),
    st.booleans(),
)
def test_a_withdrawal_that_returns_leaves_no_trace(
    total: int, more: int, split: int, first: Half, inside: bool
) -> None:
    world = a_world(LRC=total + more)
    world.withdrawals = "inside" if inside else "outside"
    world.withdrawal_requested(10110, "1", more, split=split, first=first)
    world.settle(10110)
    if not inside:
        world.withdrawal_debited(10110, "1", more, split=split, first=first)
        world.settle(10110)
    world.withdrawal_returned(10110, "1", more, split=split, first=first)
    world.settle(10110)
    assert lrc(world) == (total + more, 0, 0, 0)
