"""`watcher audit --store`, as a shell would run it."""

from pathlib import Path

import pytest

from tests.support.servers import LIMITED_NAMESPACE, limited_server
from tests.support.stories import STORY, Books, Run, a_configuration, ended, in_the_books
from watcher.store.keys import SHARDS, shard_of

SHARD = shard_of("treasury")


async def a_past(books: Books) -> None:
    await books.enroll("treasury")
    await books.live(STORY)


async def a_damaged_past(books: Books) -> None:
    await a_past(books)
    for entry_id, _ in (await books.pipe.command("XRANGE", books.keys.log(SHARD), "-", "+"))[2:]:
        await books.damage("XDEL", books.keys.log(SHARD), entry_id)
    await books.damage("DEL", books.keys.due_subscriptions(SHARD))
    await books.damage("SET", f"{books.keys.namespace}:notes", "mine")


@pytest.fixture(autouse=True)
def _at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is under way: there is nothing to wait for between two looks."""
    monkeypatch.setattr("watcher.store.inventory.WAITS_S", (0.0, 0.0, 0.0))


@pytest.fixture
def run(tmp_path: Path, redis_server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Run:
    config = a_configuration(tmp_path, redis_server_url, namespace, "treasury")
    return lambda *arguments: ended(capsys, "audit", "--config", config, "--store", *arguments)


def test_a_consistent_store_passes_and_the_output_says_what_was_compared(
    run: Run, redis_server_url: str, namespace: str
) -> None:
    in_the_books(redis_server_url, namespace, a_past)
    done = run()
    assert (done.code, done.out) == (0, "")
    assert done.err == "16 bodies with 32 references, 1 queue, 1 state: nothing disagrees\n"
    done = run("--json")
    assert [found["shard"] for found in done.objects] == [None, *range(SHARDS)]
    assert all(found["ok"] and not found["findings"] and not found["moving"] for found in done.objects)


def test_an_inconsistency_is_shown_with_what_to_do_and_exits_with_1(
    run: Run, redis_server_url: str, namespace: str
) -> None:
    in_the_books(redis_server_url, namespace, a_damaged_past)
    done = run()
    assert done.code == 1
    shown = done.lines
    assert shown[0] == f"{namespace}:notes: watcher writes no key of this name"
    assert shown[1].startswith(f"    if no other program needs it: UNLINK {namespace}:notes;")
    index = f"{namespace}:{{{SHARD}}}:due:queues"
    assert f"    no worker looks at it; to make them look: ZADD {index} 0 ops" in shown
    assert sum("its body counts 2, and 1 refer to it (queues 1)" in line for line in shown) == 5
    assert any(line.endswith("more of this kind; --json lists all") for line in shown)
    assert done.err.endswith("disagreements\n")
    done = run("--json")
    assert done.code == 1
    kinds = {finding["kind"] for found in done.objects for finding in found["findings"]}
    assert kinds == {"unknown", "index", "count", "size"}


def test_an_audit_of_the_store_takes_no_filter(run: Run) -> None:
    done = run("treasury")
    assert done.code == 2
    assert "--store looks at everything: leave out ACCOUNT" in done.err


def test_keys_that_this_user_may_not_list_are_reported_as_unchecked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with limited_server("valkey-acl") as url:
        in_the_books(url, LIMITED_NAMESPACE, a_damaged_past)
        config = a_configuration(tmp_path, url, LIMITED_NAMESPACE, "treasury")
        done = ended(capsys, "audit", "--config", config, "--store")
    assert done.code == 1
    assert done.err.startswith("not looked at: keys that nothing names, as this user of Redis may not SCAN\n")
    assert "no worker looks at it" in done.out
    assert "notes" not in done.out
