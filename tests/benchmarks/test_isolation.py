"""A hundred dead subscribers do not slow a live one: the benchmark in its small form, which can fail."""

import subprocess
import sys

import pytest

from tests.benchmarks.isolation import QUICK, Back, Found, Phase
from tests.support import ROOT

pytestmark = pytest.mark.slow

BENCHMARK = ("-m", "tests.benchmarks.isolation")

QUIET = Phase("alone", [3.0] * 60, 0, 0)
DEAD = QUIET._replace(name="beside the dead", others=QUICK.dead)
GOOD = Found(QUIET, DEAD, QUIET._replace(name="while one comes back"), Back(500, 32, True, 1.0))


def test_the_small_form_finds_no_fault() -> None:
    benchmark = subprocess.run(
        (sys.executable, *BENCHMARK, "--quick"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert benchmark.returncode == 0, benchmark.stdout + benchmark.stderr
    rows = [line for line in benchmark.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (GOOD._replace(dead=DEAD._replace(failed=1)), "1 attempts of the live subscription failed"),
        (GOOD._replace(dead=DEAD._replace(latency_ms=[3.0] * 50 + [104.0] * 10)), "over 100 ms above"),
        (GOOD._replace(dead=DEAD._replace(latency_ms=[3.0] * 40)), "only 40 live events"),
        (GOOD._replace(dead=DEAD._replace(others=QUICK.dead // 2 - 1)), "not all tried"),
        (GOOD._replace(treated=Back(500, 32, False, 1.0)), "not asked by one attempt first"),
        (GOOD._replace(treated=Back(500, 33, True, 1.0)), "more than 32 at a time"),
    ],
)
def test_a_figure_beyond_its_bound_is_named(found: Found, fault: str) -> None:
    assert list(GOOD.faults(QUICK)) == []
    (shown,) = found.faults(QUICK)
    assert fault in shown
