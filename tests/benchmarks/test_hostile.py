"""Hostile subscribers cost neither memory nor more than their time: the benchmark, which can fail."""

import subprocess
import sys

import pytest

from tests.benchmarks.hostile import QUICK, Cost
from tests.support import ROOT

pytestmark = pytest.mark.slow

BENCHMARK = ("-m", "tests.benchmarks.hostile")

CHEAP = Cost("a body", {200}, [12.0, 0.1], 0, [1, 200, 210])


@pytest.mark.parametrize(
    "form", ["--quick", pytest.param(None, marks=(pytest.mark.long, pytest.mark.timeout(400)))]
)
def test_hostile_subscribers_cost_no_memory_and_no_more_than_their_time(form: str | None) -> None:
    benchmark = subprocess.run(
        (sys.executable, *BENCHMARK, *([form] if form else [])),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50 if form else 390,
        check=False,
    )
    print(benchmark.stdout)
    assert benchmark.returncode == 0, benchmark.stdout + benchmark.stderr
    rows = [line for line in benchmark.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 9


@pytest.mark.parametrize(
    ("cost", "fault"),
    [
        (CHEAP._replace(grown_mib=[12.0, 1.0]), "memory grew by 1.0 MiB and more"),
        (CHEAP._replace(left=31), "31 objects were left"),
        (CHEAP._replace(duration_ms=[1, 200, 1300]), "an attempt took 1300 ms"),
    ],
)
def test_a_cost_beyond_its_bound_is_named(cost: Cost, fault: str) -> None:
    assert list(CHEAP.faults(QUICK)) == []
    (shown,) = cost.faults(QUICK)
    assert fault in shown
