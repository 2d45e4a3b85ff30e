"""A start with very many accounts, and their polls, never block the event loop."""

import pytest

from tests.benchmarks.fast_server import fast_server
from tests.benchmarks.many import measure_many
from tests.benchmarks.stage import on_a_loop

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

ACCOUNTS = 300_000


def test_neither_the_start_nor_the_polls_of_many_accounts_hold_the_loop_up() -> None:
    with fast_server() as url:
        rows = on_a_loop(measure_many(url, ACCOUNTS))
    stood_still = [float(row.ours) for row in rows if "stood still" in row.what]
    assert len(stood_still) == 3
    assert max(stood_still) <= 50
