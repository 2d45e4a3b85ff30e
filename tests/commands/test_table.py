"""Tables fit their terminal, and a shortened amount is never shown as another one."""

import io
import re
import subprocess
import sys
import time
from decimal import Decimal
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.program import environment
from tests.support.terminal import a_terminal
from watcher.commands._table import (
    Column,
    Display,
    Fails,
    Progress,
    Table,
    Waits,
    amount_text,
    cut,
    width_of,
    wrapped,
)

BALANCES = (
    Column("account"),
    Column("asset"),
    Column("total", "amount"),
    Column("available", "amount", rank=1),
    Column("id", "whole", rank=3),
    Column("why", "prose", rank=2, least=24),
)
NAMES = ("treasury", "国庫の口座の名前", "🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀", "z̸̢̛a̷l̵g̶o̴", "a" * 200)
AMOUNTS = ("0", "-12.5", "1234567.123456789012345678", "0.000000000123456789123", str(2**256 - 1))


@pytest.mark.parametrize(
    ("exact", "shown"),
    [
        ("0", "0"),
        ("1234567.12345678", "1234567.12345678"),
        ("1234567.123456789", "1234567.12345678…"),
        ("-0.999999999999999999", "-0.99999999…"),
        ("0.000000000123456789", "0.00000000012345678…"),
        ("1.000000000000000001", "1.00000000…"),
        ("115792089237316195423570985008687907853269984665640564039457", "1.15792089…e59"),
        ("1" + "0" * 40, "1e40"),
        ("-0." + "0" * 40 + "15", "-1.5e-41"),
        ("-", "-"),
    ],
)
def test_an_amount_is_cut_to_eight_significant_decimals_with_a_mark(exact: str, shown: str) -> None:
    assert amount_text(exact) == shown


@given(st.decimals(allow_nan=False, allow_infinity=False, places=18), st.integers(8, 40))
def test_a_cut_amount_is_a_prefix_of_the_exact_one_and_fits(amount: Decimal, width: int) -> None:
    exact = f"{amount.normalize():f}"
    shown = amount_text(exact, width)
    assert len(shown) <= width
    if shown != exact:
        value = Decimal(shown.replace("…", ""))
        assert abs(value) <= abs(amount)
        assert ("…" in shown) == (value != amount)


def shown_at(width: int | None, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with Table(*BALANCES, width=width) as table:
        for begin in (0, 3):  # in two parts
            names, amounts = NAMES[begin : begin + 3], AMOUNTS[begin : begin + 3]
            why = "the provider answers 503 since a while, and nothing else is known of it"
            table.say(
                [
                    (name, "ETH", amount, amount, "evt_exq2atkfezkrl7uwjqzorlfh", why)
                    for name, amount in zip(names, amounts, strict=True)
                ]
            )
    done = capsys.readouterr()
    if width is None:
        assert done.err == ""
    return done.out.splitlines()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown_at(width, capsys)
    assert max(map(width_of, lines)) <= width
    assert lines[0].split()[:3] == ["account", "asset", "total"]


def test_columns_that_do_not_fit_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with Table(*BALANCES, width=40) as table:
        table.say([("treasury", "ETH", "1", "1", "evt_exq2atkfezkrl7uwjqzorlfh", "gone")])
    done = capsys.readouterr()
    assert done.out.splitlines()[0].split() == ["account", "asset", "total", "available", "why"]
    assert done.err == "no room for id: --wide shows all\n"


def test_columns_that_hold_nothing_give_way_first(capsys: pytest.CaptureFixture[str]) -> None:
    with Table(*BALANCES, width=60) as table:
        table.say([("treasury", "ETH", "1", "-", "evt_exq2atkfezkrl7uwjqzorlfh", "")])
    done = capsys.readouterr()
    assert done.out.splitlines()[0].split() == ["account", "asset", "total", "id"]
    assert done.err == "no room for available, why: --wide shows all\n"


def test_without_a_terminal_all_columns_are_there_and_amounts_are_still_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = shown_at(None, capsys)
    assert lines[0].split() == ["account", "asset", "total", "available", "id", "why"]
    assert "a" * 200 in lines[5]
    assert "1234567.12345678…" in lines[3]


def test_wide_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(is_wide=True).table(*BALANCES) as table:
        table.say([(NAMES[4], "ETH", *AMOUNTS[3:], "evt_1", "x " * 100)])
    shown = capsys.readouterr().out
    assert all(text in shown for text in (NAMES[4], *AMOUNTS[3:], "x " * 99))


def test_a_wide_character_counts_as_two_columns_and_a_combining_mark_as_none() -> None:
    assert [width_of(text) for text in ("abc", "国庫", "🚀", "z̸a̷", "é", "한글")] == [3, 4, 2, 2, 1, 4]


def test_columns_line_up_with_characters_of_any_width(capsys: pytest.CaptureFixture[str]) -> None:
    with Table(Column("name"), Column("total", "amount"), Column("why")) as table:
        table.say([("国庫", "1", "x"), ("treasury", "12.5", "x"), ("🚀", "3", "x"), ("z̸a̷", "3", "x")])
    lines = capsys.readouterr().out.splitlines()
    assert {width_of(line) for line in lines[1:]} == {len("treasury  total  x")}


def test_failures_are_red_and_waits_yellow_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(Fails("DIFFERS"), "x"), (Waits("suspect"), "y"), ("ok", "z")]
    Table(Column("state"), Column("name")).say(rows)
    assert capsys.readouterr().out == "state    name\nDIFFERS  x\nsuspect  y\nok       z\n"
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    Table(Column("state"), Column("name")).say(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["\x1b[31mDIFFERS\x1b[0m  x", "\x1b[33msuspect\x1b[0m  y", "ok       z"]


@given(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=200))
def test_text_is_cut_or_wrapped_to_the_width_and_wrapping_loses_nothing(text: str) -> None:
    assert width_of(cut(text, 20)) <= 20
    lines = wrapped(text, 20)
    assert max(map(width_of, lines)) <= 20
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_time_is_shown_to_the_second_as_since_accepts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "2026-11-20T11:45:55.846Z"
    assert Display().time(text) == "2026-11-20T11:45:55Z"
    assert Display(is_wide=True).time(text) == text
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert Display(is_local=True).time(text) == "2026-11-20T17:15:55+05:30"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert Display().time("\x1b[2J") == "\\x1b[2J"


def shown_on_a_terminal(file: Path, columns: int, *arguments: str, **more: str) -> str:
    """Run a command on a terminal of so many columns."""
    with a_terminal(file) as terminal:
        ioctl(terminal, TIOCSWINSZ, pack("HHHH", 24, columns, 0, 0))
        command = (sys.executable, "-m", "watcher", *arguments)
        variables = environment(COLUMNS="", **more)
        subprocess.run(command, stdout=terminal, stderr=terminal, env=variables, check=True)
    return file.read_text()


def test_the_width_is_taken_from_the_terminal(tmp_path: Path) -> None:
    shown = shown_on_a_terminal(tmp_path / "shown", 60, "recipes")
    assert max(map(width_of, shown.splitlines())) <= 60
    assert shown.startswith("recipe ")
    assert "\nno room for " in shown
    assert shown.endswith("next: watcher init --provider NAME, or watcher recipes NAME\n")


def test_a_hundred_thousand_rows_are_shown_in_parts_quickly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [("treasury", "ETH", "1234567.123456789012345678", "1", "evt_1", "because")] * 500
    with Table(*BALANCES, width=120) as table:
        table.say(rows)
        first = time.process_time()
        for _ in range(19):
            table.say(rows)
    assert time.process_time() - first < 2, "200,000 a minute"
    assert len(re.findall("because", capsys.readouterr().out)) == 10_000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("waits_s", "is_shown"), [(0.5, False), (1.5, True)])
def test_long_work_shows_its_progress_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, waits_s: float, *, is_shown: bool
) -> None:
    terminal, now = Terminal(), [100.0]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    with Progress("auditing", 4) as progress:
        progress.done()
        now[0] += waits_s
        progress.done(2)
    shown = terminal.getvalue()
    assert bool(shown) is is_shown
    if is_shown:
        assert re.search(r"auditing  \[#+-+\]   75%  00:00:0\d", shown)
        assert re.search(r"auditing  \[#+\]  100%.*\n", shown)
        assert shown.endswith("\n")
        assert shown.count("\n") == 1


def test_work_that_fails_leaves_its_progress_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def fail() -> None:
        with Progress("auditing", 4, is_long=True) as progress:
            progress.done()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "100%" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_progress_is_shown_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("auditing", 4, is_long=True) as progress:
        progress.done()
    assert capsys.readouterr().err == ""


def test_progress_is_drawn_seldom_however_many_steps_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row that is read is a step: of 100,000 the drawing would take longer than the reading."""
    drawn = io.StringIO()
    monkeypatch.setattr(drawn, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", drawn)
    monkeypatch.setenv("COLUMNS", "40")
    with Progress("reading", 100_000, is_long=True) as progress:
        for _ in range(100_000):
            progress.done()
    frames = [
        frame for frame in re.split(r"[\r\n]+", re.sub(r"\x1b\[\S+?[lh]", "", drawn.getvalue())) if frame
    ]
    assert 1 <= len(frames) < 50
    assert "100%" in frames[-1]
    assert max(map(len, map(str.rstrip, frames))) < 40
