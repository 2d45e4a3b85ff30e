"""Measures how long a declared API's answer takes to read, from parsed JSON to the snapshot.

    python -m tests.benchmarks.declared

Prints the CPU time of one answer with 600 rows, as a large exchange lists them, beside that of parsing it and
of a raw loop that makes the same rows without reading an amount: only the ratios compare, between machines.
"""

import json
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from tests.support.provider_staging import declared_account, declared_settings
from watcher.providers.declared import Http
from watcher.providers.strict_json import parse
from watcher.snapshot import Asset, Balance, Row

ROWS = 600
LISTING: dict[str, Any] = {
    "ask": [{"path": "/api/v3/account"}],
    "read": [{"rows": "balances", "asset": "asset", "total": ["free", "locked"], "locked": "locked"}],
}


def a_listing(rows: int = ROWS, *, held: float = 1.0) -> bytes:
    """An answer with so many rows, of which this share is not zero."""
    chance = random.Random(600)

    def amount(most: int) -> str:
        is_held = chance.random() < held
        return f"{chance.randrange(most)}.{chance.randrange(10**8):08d}" if is_held else "0.00000000"

    said = [{"asset": f"A{number}", "free": amount(10**6), "locked": amount(10**3)} for number in range(rows)]
    return json.dumps({"makerCommission": 10, "balances": said}).encode()


def cpu_ms(work: Callable[[], object], times: int = 30) -> float:
    """The median of the CPU times of some work."""
    taken: list[float] = []
    for _ in range(times):
        started = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - started))
    return median(taken)


def raw_rows(answer: dict[str, list[dict[str, str]]]) -> dict[str, Row]:
    """Make the rows of an answer without reading an amount."""
    return {
        said["asset"]: Row(Asset(said["asset"]), Balance(said["free"], said["locked"], None, None))
        for said in answer["balances"]
    }


def figures(held: float) -> str:
    """Measure an answer of which this share is not zero."""
    provider, account, body = Http(declared_settings(**LISTING)), declared_account(), a_listing(held=held)
    answer = parse(body)
    read, raw = cpu_ms(lambda: provider.read(account, [answer], {})), cpu_ms(lambda: raw_rows(answer))
    return (
        f"{ROWS} rows, {held:.0%} not zero: read {read:.2f} ms, parsed {cpu_ms(lambda: parse(body)):.2f} ms, "
        f"raw loop {raw:.2f} ms: {read / raw:.1f} times that"
    )


if __name__ == "__main__":
    print(figures(0.1), figures(1.0), sep="\n")
