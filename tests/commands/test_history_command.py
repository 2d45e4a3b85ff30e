"""`watcher history`: the exact balances of an account over time, whatever its assets are called."""

import csv
import io
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import a_row, a_snapshot
from tests.support.stories import STORY, Books, Run, a_configuration, ended, in_the_books, records_of, steps
from watcher.commands._shared import parse_since
from watcher.commands.history import Curve
from watcher.durations import since_ms
from watcher.journal.events import iso
from watcher.journal.log import Record
from watcher.snapshot import Asset, Snapshot
from watcher.store.history import History

HOSTILE = Asset("7", "=\x1b]0;owned\x07", "x", 0)
MINUTE_MS = 60_000


@pytest.fixture
def config(tmp_path: Path, redis_server_url: str, namespace: str) -> Path:
    async def a_past(books: Books) -> None:
        await books.enroll("treasury", "alice")
        await books.live(STORY)
        evil = [Snapshot({"7": a_row(HOSTILE, total)}, None, absent_is_zero=True) for total in ("1", "2")]
        await books.live(evil, "alice")

    in_the_books(redis_server_url, namespace, a_past)
    return a_configuration(tmp_path, redis_server_url, namespace, "treasury", "alice", "bob")


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda name, *arguments: ended(capsys, name, "--config", config, *arguments)


def test_each_line_shows_the_balance_from_then_on(run: Run) -> None:
    lines = [json.loads(line) for line in run("history", "--json", "treasury").out.splitlines()]
    held = [line["total"] for line in lines if line["asset"] == "ETH"]
    assert (held[0], held[-1]) == ("110", "101")
    assert {"baseline", "total.increased", "locked.increased"} <= {line["event"] for line in lines}
    locked = next(line for line in lines if line["event"] == "locked.increased")
    assert (locked["total"], locked["locked"], locked["available"]) == ("110", "20", "90")
    shown = run("history", "treasury").out
    assert "locked +20" in shown
    assert len(shown.splitlines()) == len(lines) + 1


def test_csv_has_the_same_exact_amounts_and_no_formulas(run: Run) -> None:
    rows = [*csv.DictReader(io.StringIO(run("history", "--csv", "alice").out))]
    assert [row["total"] for row in rows] == ["1", "2"]
    assert rows[-1]["symbol"].startswith("'=\\x1b")


def test_an_asset_is_found_by_symbol_or_id_in_any_case(run: Run) -> None:
    assert run("history", "--json", "--asset", "eth", "treasury").out == (
        run("history", "--json", "--asset", "ETH", "treasury").out
    )
    for written in (("--asset", "ETK", "treasury"), ("treasury", "ETK")):
        refused = run("history", *written)
        assert refused.code == 2
        assert "did you mean 'ETH'?" in refused.err


def test_assets_may_follow_the_account(run: Run) -> None:
    lines = run("history", "--json", "treasury", "ETH", "LRC").out
    assert lines == run("history", "--json", "--asset", "LRC", "--asset", "ETH", "treasury").out
    assert {json.loads(line)["asset"] for line in lines.splitlines()} == {"ETH", "LRC"}


def test_since_begins_with_the_balance_at_that_time(run: Run) -> None:
    lines = [json.loads(line) for line in run("history", "--json", "treasury").out.splitlines()]
    third = lines[3]
    later = run("history", "--json", "--since", third["timestamp"], "treasury").out.splitlines()
    found = [json.loads(line) for line in later]
    assert all(line["timestamp"] >= third["timestamp"] for line in found)
    for asset in {line["asset"] for line in found} & {line["asset"] for line in lines[:3]}:
        before = [line for line in lines if line["asset"] == asset and line["timestamp"] < third["timestamp"]]
        first = next(line for line in found if line["asset"] == asset)
        assert (first["timestamp"], first["total"]) == (third["timestamp"], before[-1]["total"])
        assert (first["event"], first["sequence"]) == ("start", before[-1]["sequence"])
    changes = [line for line in found if line["event"] != "start"]
    assert changes == [line for line in lines if line["timestamp"] >= third["timestamp"]]
    table = run("history", "--wide", "--since", third["timestamp"], "treasury").out.splitlines()
    assert [" total " in line for line in table if " start " in line] == [False] * (len(found) - len(changes))


def test_an_unknown_account_is_refused_and_one_without_events_is_not(run: Run) -> None:
    refused = run("history", "tresury")
    assert (refused.code, "did you mean 'treasury'?" in refused.err) == (2, True)
    quiet = run("history", "bob")
    assert (quiet.code, quiet.out) == (0, "")
    assert "nothing" in quiet.err
    both = run("history", "--csv", "--plot", "bob")
    assert both.code == 2


def test_lines_are_printed_while_more_are_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = records_of(steps([a_snapshot(ETH=str(100 + number % 7)) for number in range(1100)]))
    printed = {}

    async def records(_: History, account: str) -> AsyncIterator[Record]:
        for number, record in enumerate(made):
            if number in (400, 600):
                printed[number] = capsys.readouterr().out.splitlines()
            yield record

    monkeypatch.setattr(History, "records", records)
    rest = run("history", "--csv", "treasury").out.splitlines()
    assert (len(printed[400]), len(printed[600])) == (0, 501)
    assert len(rest) == len(made) - 500


def test_a_baseline_has_the_symbol_that_the_provider_gave_its_asset(run: Run) -> None:
    lines = run("history", "--json", "alice").objects
    assert [line["event"] for line in lines] == ["baseline", "total.increased"]
    assert {line["symbol"] for line in lines} == {HOSTILE.symbol}


def test_a_plot_of_a_long_past_takes_little_memory_and_keeps_its_extremes() -> None:
    past = [a_step(minute, str(5 + minute % 3)) for minute in range(20_000)]
    past[7_001] = a_step(7_001, "90")
    curve = Curve("total", since_ms=0, until_ms=20_000 * MINUTE_MS)
    for step in past:
        curve.add(step)
    lines = curve.lines()
    assert lines[1].startswith("90 ┤")
    assert lines[-2].startswith(" 5 ┤")
    assert len(curve._held) <= 1_001


def test_a_plot_is_drawn_for_each_asset_with_its_range(run: Run) -> None:
    shown = run("history", "--plot", "treasury").out
    for title in ("ETH  total 101", "LRC  total 67", "USDC  total 3"):
        assert title in shown
    hostile = run("history", "--plot", "alice").out
    assert "\x1b" not in hostile


def plot(steps: Iterable[dict[str, Any]], field: str, *, until_ms: int) -> list[str]:
    first, *rest = steps
    curve = Curve(field, since_ms=first["at_ms"], until_ms=until_ms)
    for step in (first, *rest):
        curve.add(step)
    return curve.lines()


def a_step(minute: int, total: str | None) -> dict[str, Any]:
    return {"at_ms": minute * MINUTE_MS, "asset": "7", "symbol": "ETH", "total": total}


def test_a_curve_steps_up_where_the_balance_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    lines = plot([a_step(0, "1"), a_step(50, "1000")], "total", until_ms=100 * MINUTE_MS)
    curve = [line.partition("┤")[2] for line in lines[1:-1]]
    assert lines[1].startswith("1000 ┤")
    assert lines[-2].startswith("   1 ┤")
    top, bottom = curve[0], curve[-1]
    assert top.strip() == "█" * len(top.strip())
    assert (top.count("█") - len(top) // 2) in range(-1, 2)
    assert bottom[: len(top) // 3] == "▁" * (len(top) // 3)


def test_a_plot_without_movement_is_a_line_and_one_without_data_is_empty() -> None:
    flat = plot([a_step(0, "5")], "total", until_ms=MINUTE_MS)
    assert set(flat[-2].partition("┤")[2]) == {"▁"}
    assert plot([a_step(0, None)], "total", until_ms=MINUTE_MS) == ["ETH  total is not known"]


def test_amounts_beyond_floats_are_labelled_to_the_digit() -> None:
    huge = "9" * 60 + ".123456789123456789"
    lines = plot([a_step(0, "-1"), a_step(1, huge)], "total", until_ms=2 * MINUTE_MS)
    assert any(line.startswith(huge) for line in lines)


@given(st.integers(0, 4_102_444_800_000))
def test_a_printed_time_is_read_as_the_same_time(ms: int) -> None:
    assert since_ms(parse_since(iso(ms)), 0) == ms
