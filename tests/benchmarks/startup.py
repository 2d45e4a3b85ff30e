"""How long commands take to start, as multiples of `python -c pass` on the same machine at the same time.

    python -m tests.benchmarks.startup

Rounds take turns, so that another load falls on all alike; CPU time is of the process alone.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 15
MOST_BY_NAME = {"--help": 8, "check": 20, "health --file": 10}
"""80, 200 and 100 ms on a machine on which `python -c pass` takes 10 ms."""

CONFIGURATION = """\
[providers.loopring]
api_key = "k"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 10110

[[subscriptions]]
name = "ops"
url = "https://ops.example.com/hooks/balances"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
"""


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run once; says how many ms it took, and how many of CPU."""
    before = os.times()
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    took_s = time.perf_counter() - started
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return 1000 * took_s, 1000 * cpu_s


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path, beat = Path(directory, "watcher.toml"), Path(directory, "heartbeat")
        path.write_text(CONFIGURATION)
        beat.touch()
        arguments_by_name = {
            "python -c pass": ["-c", "pass"],
            "--help": ["-m", "watcher", "--help"],
            "check": ["-m", "watcher", "check", "--config", str(path)],
            "health --file": ["-m", "watcher", "health", "--file", str(beat)],
        }
        taken = {name: [measure(arguments)] for name, arguments in arguments_by_name.items()}  # compiled now
        for _ in range(ROUNDS):
            for name, arguments in arguments_by_name.items():
                taken[name].append(measure(arguments))
    medians = {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)]
        for name, rows in taken.items()
    }
    base_ms, base_cpu_ms = medians["python -c pass"]
    print(f"{'':<16}{'ms':>7}{'CPU ms':>9}{'times':>8}{'CPU':>7}{'at most':>9}")
    for name, (ms, cpu_ms) in medians.items():
        most = MOST_BY_NAME.get(name, "")
        print(f"{name:<16}{ms:>7.0f}{cpu_ms:>9.0f}{ms / base_ms:>8.1f}{cpu_ms / base_cpu_ms:>7.1f}{most:>9}")


if __name__ == "__main__":
    main()
