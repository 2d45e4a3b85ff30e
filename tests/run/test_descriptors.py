"""How the file descriptors of a process are shared out."""

import subprocess
import sys

import pytest

from watcher.run.configured import MOST_ATTEMPTS, shares
from watcher.store.client import CONNECTIONS as OF_THE_STORE

ROOM_FOR_THE_REST = 112


@pytest.mark.parametrize("limit", [256, 1024, 4096, 65_536])
@pytest.mark.parametrize("providers", [0, 1, 2, 8, 30])
def test_all_shares_together_are_within_the_limit(limit: int, providers: int) -> None:
    share = shares(limit, providers)
    taken = share.attempts + share.kept + providers * share.of_a_provider
    assert taken + OF_THE_STORE + ROOM_FOR_THE_REST <= limit
    assert min(share) >= 1


def test_with_many_descriptors_every_part_gets_a_useful_share() -> None:
    assert shares(1_000_000, 2) == (MOST_ATTEMPTS, MOST_ATTEMPTS // 2, 128)


def test_with_few_descriptors_every_part_gets_some() -> None:
    assert min(shares(64, 3)) >= 1


@pytest.mark.parametrize(("soft", "hard", "limit"), [(256, 4096, 4096), (200, 200, 200)])
def test_the_soft_limit_is_raised_as_far_as_it_may_be(soft: int, hard: int, limit: int) -> None:
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from watcher.run.configured import share_out; print(*share_out(1))"
    )
    printed = subprocess.check_output((sys.executable, "-c", program), text=True)
    assert [*map(int, printed.split())] == [*shares(limit, 1)]
