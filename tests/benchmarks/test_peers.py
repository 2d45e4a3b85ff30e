"""How the benchmark of other queues computes its result, and what it says if one cannot be installed."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks.peers import (
    BULLMQ,
    OURS,
    Missing,
    Run,
    cpu_s,
    faults,
    install,
    rate,
    rows,
    run_quietly,
)


def some_runs(*rates: float) -> Sequence[Run]:
    return [Run(per_second, cpu_us=100) for per_second in rates]


def test_a_rate_is_taken_from_the_first_receipt_to_the_last() -> None:
    assert rate({"third": 12.0, "first": 10.0, "second": 10.5}) == 1.0


def test_cpu_time_is_that_of_all_processes_of_a_group() -> None:
    def stat(name: str, group: int, *ticks: int) -> str:
        return f"7 ({name}) S 1 {group} 7 0 -1 4194560 900 0 0 0 {' '.join(map(str, ticks))} 20 0 1 0 5000"

    lines = [
        stat("node", 7, 100, 20, 0, 0),
        stat("a) R 1 9 (b", 7, 5, 0, 60, 15),
        stat("redis", 9, 7, 7, 7, 7),
    ]
    assert cpu_s(7, lines) == cpu_s(9, [stat("one", 9, 200, 0, 0, 0)])


def test_rates_are_compared_within_a_round() -> None:
    runs = {OURS: some_runs(5_000, 12_000, 6_000), BULLMQ: some_runs(2_500, 10_000, 6_000)}
    assert list(rows(runs)) == [(OURS, "6,000", "1.20", "100"), (BULLMQ, "6,000", "1.00", "100")]
    assert not list(faults(runs))


def test_a_worker_that_is_not_fast_enough_is_a_fault() -> None:
    (fault,) = faults({OURS: some_runs(1_190, 1_190), BULLMQ: some_runs(1_000, 1_000)})
    assert "1.19" in fault


def test_having_nothing_to_compare_with_is_a_fault() -> None:
    runs = {OURS: some_runs(5_000), "arq": some_runs(1_000)}
    (fault,) = faults(runs)
    assert "not both measured" in fault
    assert [row[0] for row in rows(runs)] == [OURS, "arq"]


def test_without_node_bullmq_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="no node here"):
        install(BULLMQ, tmp_path)


def test_a_peer_that_cannot_be_installed_is_missing_with_the_installers_reason() -> None:
    says_why = "import sys; sys.exit('a word before\\nno such package')"
    with pytest.raises(Missing, match="cannot be installed: no such package"):
        run_quietly((sys.executable, "-S", "-c", says_why))
