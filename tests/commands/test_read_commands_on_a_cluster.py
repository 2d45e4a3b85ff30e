"""The read commands on a Redis Cluster: none asks for keys of two slots at a time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clusters import Cluster, a_cluster
from tests.support.stories import STORY, Books, a_configuration, ended, in_the_books

pytestmark = pytest.mark.slow

ACCOUNTS = ("treasury", "alice", "bob", "carol")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with a_cluster() as cluster:
        yield cluster


@pytest.mark.parametrize(
    "command",
    [
        ("audit",),
        ("balances",),
        ("events",),
        ("deliveries",),
        ("deliveries", "--dead"),
        ("deliveries", "--attempts"),
        ("subscriptions",),
        ("subscriptions", "pause", "ops"),
        ("subscriptions", "resume", "ops"),
        ("status",),
        ("poll", *ACCOUNTS),
        ("resend", "--subscription", "ops", "--since", "1h", "--dry-run"),
        ("resend", "--subscription", "ops", "--dead"),
    ],
    ids=" ".join,
)
def test_every_read_command_works_on_a_cluster(
    cluster: Cluster,
    namespace: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
) -> None:
    async def write(books: Books) -> None:
        await books.enroll(*ACCOUNTS)
        for name in ACCOUNTS:
            await books.live(STORY, name)

    in_the_books(cluster.url, namespace, write)
    config = a_configuration(tmp_path, cluster.url, namespace, *ACCOUNTS)
    name, *arguments = command
    done = ended(capsys, name, "--config", config, *arguments)
    assert done.code == 0, done.err
    assert "bug" not in done.err
