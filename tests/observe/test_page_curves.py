"""The curve of a total goes back from its current value by its events, exactly and no further than known."""

from hypothesis import given
from hypothesis import strategies as st

from watcher.amounts import to_atoms, to_text
from watcher.journal.log import Record
from watcher.observe.page.document import MOST_POINTS, Point, Step, curve, of_asset, thinned
from watcher.observe.page.look import steps_of


def a_step(at_ms: int, moved: str | None, asset: str | None = "ETH") -> Step:
    return Step(at_ms, asset, None if moved is None else to_atoms(moved))


def spelled(points: list[Point]) -> list[tuple[int, str]]:
    return [(at_ms, to_text(total)) for at_ms, total in points]


def test_a_curve_follows_a_total_back_through_its_effects() -> None:
    steps = [a_step(20, "5"), a_step(30, "-0.000000000000000000000000000001")]
    found = curve(to_atoms("104.999999999999999999999999999999"), steps, since_ms=10)
    assert spelled(found) == [(10, "100"), (20, "105"), (30, "104.999999999999999999999999999999")]


def test_a_curve_begins_where_the_asset_was_first_read() -> None:
    steps = [a_step(15, "7"), a_step(20, None), a_step(30, "2")]
    assert spelled(curve(to_atoms("12"), steps, since_ms=10)) == [(20, "10"), (30, "12")]


def test_a_curve_goes_below_zero_where_the_account_was_overdrawn() -> None:
    steps = [a_step(20, "-8"), a_step(30, "-1.5"), a_step(40, "14.5")]
    found = curve(to_atoms("10"), steps, since_ms=10)
    assert thinned(found, since_ms=10, until_ms=50) == [(10, "5"), (20, "-3"), (30, "-4.5"), (40, "10")]


def test_an_unmoved_total_is_a_flat_curve() -> None:
    assert spelled(curve(to_atoms("3"), [], since_ms=10)) == [(10, "3")]


def test_a_token_that_came_later_is_zero_from_the_first_reading_of_its_account_on() -> None:
    baseline = {"type": "baseline", "assets": {"ETH": ["5", "0", "0", "0"]}, "whole": True}
    event = {"type": "total.increased", "data": {"asset": {"id": "NEW"}, "effect": {"total": "7"}}}
    records = [Record("treasury", 0, baseline, "20-0"), Record("treasury", 0, event, "30-0")]
    steps = [step for record in records for _, step in steps_of(record)]
    for asset, total, points in (("ETH", "5", [(20, "5")]), ("NEW", "7", [(20, "0"), (30, "7")])):
        assert spelled(curve(to_atoms(total), of_asset(steps, asset), since_ms=0)) == points


def test_an_unreadable_record_ends_the_curves_of_all_assets() -> None:
    steps = [a_step(5, "1"), a_step(10, "1", "LRC"), a_step(20, None, None), a_step(30, "1")]
    assert of_asset(steps, "ETH") == [steps[0], steps[2], steps[3]]
    assert spelled(curve(to_atoms("2"), of_asset(steps, "ETH"), since_ms=0)) == [(20, "1"), (30, "2")]


@given(st.lists(st.tuples(st.integers(0, 86_400_000), st.integers(-9, 9)), max_size=300))
def test_a_curve_is_short_and_keeps_both_ends(moves: list[tuple[int, int]]) -> None:
    steps = [Step(at_ms, "ETH", moved) for at_ms, moved in sorted(moves)]
    points = curve(1_000, steps, since_ms=0)
    kept = thinned(points, since_ms=0, until_ms=86_400_000)
    assert len(kept) <= MOST_POINTS + 2
    assert kept[0] == (0, to_text(points[0].total))
    assert kept[-1][1] == to_text(1_000)
    assert [at_ms for at_ms, _ in kept] == sorted(at_ms for at_ms, _ in kept)
