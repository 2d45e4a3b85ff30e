"""The benchmark still runs: it is a program of its own, which no other test would miss."""

import re
import subprocess
import sys

import pytest

from tests.support import ROOT

BENCH = ("-m", "tests.benchmarks.bench")
FIGURE = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")


@pytest.mark.slow
def test_the_benchmark_prints_a_figure_in_each_line_of_its_table() -> None:
    bench = subprocess.run(
        (sys.executable, *BENCH, "--quick"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert bench.returncode == 0, bench.stderr
    head, _, *rows = [line for line in bench.stdout.splitlines() if line.startswith("|")]
    cells = [cell.strip() for cell in head.split("|")]
    assert cells == ["", "", "worker", "raw loop", "ratio", "at least", "aim", ""]
    assert len(rows) == 29
    for row in rows:
        _, what, ours, *_ = (cell.strip() for cell in row.split("|"))
        assert what
        assert FIGURE.fullmatch(ours)
    assert "CPython" in bench.stdout
