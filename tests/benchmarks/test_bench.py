"""The benchmark still runs: it is a program of its own, and nothing else would notice."""

import os
import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).with_name("bench.py")
FIGURE = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")


def test_the_benchmark_prints_a_figure_in_each_line_of_its_table() -> None:
    root = Path(__file__).parents[2]
    bench = subprocess.run(
        (sys.executable, BENCH, "--quick"),
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert bench.returncode == 0, bench.stderr
    head, _, *rows = bench.stdout.splitlines()
    assert [cell.strip() for cell in head.split("|")] == ["", "", "worker", "raw loop", "ratio", "goal", ""]
    assert len(rows) == 15
    for row in rows:
        _, what, ours, *_ = (cell.strip() for cell in row.split("|"))
        assert what
        assert FIGURE.fullmatch(ours)
