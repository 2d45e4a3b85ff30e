"""The directory: a record, the line that it changed and its account's place on the schedule are one step; and
a store that went back takes nothing away."""

from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import ACCOUNT, MINUTE_MS, NEIGHBOURS, OPS, PROVIDER, SHARD, Store, a_store
from watcher.store.directory import (
    BadRecord,
    Change,
    Changes,
    Directory,
    Kind,
    Record,
    Write,
    Written,
    version_of,
)
from watcher.store.errors import DamagedKey
from watcher.store.keys import shard_of
from watcher.store.members import Enrolled

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


@dataclass(frozen=True)
class Place:
    """A store, and its directory."""

    store: Store
    directory: Directory

    async def put(self, name: str = ACCOUNT, encrypted: bytes = b"encrypted", **options: Any) -> Written:
        return await self.directory.put(an_account(name, encrypted, **options))

    async def delete(self, name: str = ACCOUNT, **options: Any) -> Written:
        return await self.directory.delete("account", name, **options)

    async def due(self, account: str = ACCOUNT, provider: str = PROVIDER) -> float | None:
        scores = await self.store.scores(self.store.keys.polls(shard_of(account), provider))
        return scores.get(account)

    async def removed(self) -> dict[str, float]:
        return await self.store.scores(self.store.keys.removed(SHARD))

    async def head(self, shard: int = SHARD) -> str:
        return (await self.directory.heads())[shard]

    async def held(self, *names: str) -> list[Record]:
        found = [await self.directory.get("account", name) for name in names]
        return [record for record in found if record]

    async def lose_after(self, version: int, *held: Record) -> None:
        """Let the shard of ACCOUNT go back to a version, at which it held these records."""
        keys = self.store.keys
        for key in (keys.account_records(SHARD), keys.subscription_records(SHARD)):
            await self.store.pipe.command("DEL", key)
        changes = (await self.store.contents())[keys.changes(SHARD)]
        await self.store.pipe.command("DEL", keys.changes(SHARD))
        for entry, fields in changes:
            if version_of(entry.decode()) <= version:
                await self.store.pipe.command("XADD", keys.changes(SHARD), entry, *fields)
        for one in held:
            text = b'%d %d {"provider":"loopring"}\n%s' % (one.version, one.edited, one.encrypted)
            await self.store.pipe.command("HSET", keys.account_records(SHARD), one.name, text)


def a_place(client: Redis, namespace: str, **options: Any) -> Place:
    store = a_store(client, namespace)
    return Place(store, Directory(store.pipe, store.keys, **options))


def an_account(
    name: str = ACCOUNT, encrypted: bytes = b"encrypted", provider: str = PROVIDER, **options: Any
) -> Write:
    return Write("account", name, {"provider": provider}, encrypted, **options)


def a_subscription(name: str = OPS, encrypted: bytes = b"encrypted", **options: Any) -> Write:
    return Write("subscription", name, {"accounts": ["*"], "events": [], "assets": []}, encrypted, **options)


def named(changes: Changes) -> list[tuple[Kind, str, bool]]:
    return [(one.kind, one.name, one.record is not None) for one in changes.changed]


async def test_a_record_is_read_as_it_was_written(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace)
    encrypted = bytes(range(256)) + b"\n{}\n"
    before_us = 1000 * await place.store.now_ms()
    write = Write("subscription", OPS, {"assets": ["a\nb", "Ωß 1"], "events": None}, encrypted)
    outcome, version = await place.directory.put(write)
    assert outcome == "done"
    assert before_us <= version < before_us + 1000 * MINUTE_MS, "versions come from the server's clock"
    record = Record("subscription", OPS, version, version, write.plain, encrypted, version)
    assert await place.directory.get("subscription", OPS) == record
    assert await place.directory.get("account", OPS) is None
    held = await place.directory.read(shard_of(OPS))
    assert (held.records, version_of(held.head)) == ([record], version)


async def test_versions_rise_within_one_call(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace)
    names = list(NEIGHBOURS[:20])
    written = await place.directory.put_all([an_account(name) for name in names])
    versions = [version for _, version in written]
    assert versions == sorted({*versions})
    assert version_of(await place.head()) == versions[-1]


async def test_a_new_account_is_due_at_once_and_an_edited_one_keeps_its_time(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    before = await place.store.now_ms()
    await place.put()
    assert before <= (await place.due() or 0) <= await place.store.now_ms()
    index = await place.store.scores(place.store.keys.due_polls(SHARD))
    assert index == {PROVIDER: await place.due()}
    lease = await place.store.lease()
    await place.put(encrypted=b"another")
    assert await place.due() == lease.deadline


async def test_a_deleted_account_leaves_its_schedule_and_is_forgotten_unless_it_is_put_again(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    await place.store.roster.enroll({PROVIDER: [], "shop": []}, now_ms=1)
    await place.put()
    await place.store.polls.postpone(
        PROVIDER, await place.store.lease(), why="down", at_least_ms=0, waits_ms=[5]
    )
    now_ms = await place.store.now_ms()
    assert (await place.delete()).outcome == "done"
    assert await place.held(ACCOUNT) == []
    assert await place.due() is None
    assert place.store.keys.failing(SHARD, PROVIDER) not in await place.store.contents()
    assert 10 * MINUTE_MS <= (await place.removed())[ACCOUNT] - now_ms < 11 * MINUTE_MS
    await place.put()
    assert await place.removed() == {}
    assert await place.due() is not None


async def test_an_account_that_moves_to_another_provider_leaves_the_first_ones_schedule(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    await place.store.roster.enroll({PROVIDER: [], "shop": []}, now_ms=1)
    await place.put()
    await place.put(provider="shop", encrypted=b"moved")
    assert await place.due() is None
    assert await place.due(provider="shop") is not None


async def test_accounts_of_the_file_keep_their_place_on_the_schedule(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    await place.put(is_shadowed=True)
    assert await place.due() is None
    await place.store.roster.enroll({PROVIDER: [ACCOUNT]}, now_ms=1)
    await place.delete(is_shadowed=True)
    assert await place.due() == 1
    assert await place.removed() == {}


async def test_a_reload_unschedules_nothing_that_the_directory_has(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    roster, (one, moved, damaged, gone) = place.store.roster, NEIGHBOURS[:4]
    await roster.enroll({PROVIDER: [one, moved, damaged, gone], "shop": []}, now_ms=1)
    await place.put(one)
    await place.put(moved, provider="shop")
    await place.put(damaged)
    await place.store.pipe.command("HSET", place.store.keys.account_records(SHARD), damaged, "damaged")
    assert await roster.enroll({PROVIDER: [], "shop": [moved]}, now_ms=2) == Enrolled(0, 2, (gone,))
    assert [await place.due(name) for name in (one, moved, damaged, gone)] == [1, None, 1, None]
    assert await place.due(moved, "shop") is not None
    assert list(await place.removed()) == [gone]


async def test_a_write_that_expects_another_version_changes_nothing(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    assert await place.put(expected=5) == Written("conflict", 0)
    _, first = await place.put(expected=0)
    before = await place.store.contents()
    assert await place.put(encrypted=b"another", expected=0) == Written("conflict", first)
    assert await place.put(encrypted=b"another", expected=first - 1) == Written("conflict", first)
    assert await place.delete(expected=first + 1) == Written("conflict", first)
    assert await place.store.contents() == before
    outcome, second = await place.put(encrypted=b"another", expected=first)
    assert (outcome, second > first) == ("done", True)
    outcome, third = await place.delete(expected=second)
    assert (outcome, third > second) == ("done", True)
    assert await place.delete() == Written("missing", 0)


async def test_a_repeat_of_the_same_write_is_answered_like_the_first(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    written = await place.put(expected=0)
    before = await place.store.contents()
    assert await place.put(expected=0) == written
    assert await place.store.contents() == before


async def test_a_write_by_no_client_keeps_the_version_of_the_last_edit(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    _, first = await place.put()
    await place.put(encrypted=b"encrypted anew", edited=first)
    (record,) = await place.held(ACCOUNT)
    assert (record.edited, record.version > first) == (first, True)


async def test_the_number_of_records_of_a_kind_is_limited(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace, most={"account": 16, "subscription": 16})
    names = NEIGHBOURS[:3]
    written = await place.directory.put_all([an_account(name) for name in names])
    assert [one.outcome for one in written] == ["done", "done", "full"], "one and a tenth, rounded up"
    assert await place.put(names[2]) == Written("full", 0)
    assert (await place.put(names[0], b"another")).outcome == "done", "what lies there may change"
    assert (await place.directory.put(a_subscription())).outcome == "done", "each kind has its own"
    assert await place.directory.counts() == {"account": 2, "subscription": 1}
    await place.delete(names[0])
    assert (await place.put(names[2])).outcome == "done"


async def test_a_batch_goes_to_all_shards_with_an_answer_for_each_record(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    names = [f"account-{n}" for n in range(600)]
    _, there = await place.put(names[7], b"there")
    writes = [an_account(name, expected=0) for name in names]
    written = await place.directory.put_all(writes)
    outcomes = {name: one.outcome for name, one in zip(names, written, strict=True)}
    assert outcomes == {**dict.fromkeys(names, "done"), names[7]: "conflict"}
    assert written[7].version == there
    found = {
        record.name: record.version async for held in place.directory.read_all() for record in held.records
    }
    assert found == {name: one.version for name, one in zip(names, written, strict=True)}
    assert await place.directory.counts() == {"account": 600, "subscription": 0}


async def test_a_reader_gets_each_changed_name_once(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace)
    one, other, gone = NEIGHBOURS[:3]
    assert await place.head() == ""
    assert await place.directory.changes(SHARD, "") == Changes("", ())
    await place.put(one)
    head = await place.head()
    assert await place.directory.changes(SHARD, head) == Changes(head, ())
    await place.put(gone)
    await place.put(one, b"second")
    await place.put(other)
    _, deleted = await place.delete(gone)
    _, latest = await place.put(one, b"third")
    changes = await place.directory.changes(SHARD, head)
    assert named(changes) == [("account", other, True), ("account", gone, False), ("account", one, True)]
    assert [change.version for change in changes.changed][1:] == [deleted, latest]
    assert changes.changed[-1].record == (await place.held(one))[0]
    assert changes.head == await place.head()
    assert (changes.is_behind, changes.lost_after) == (False, None)
    assert await place.directory.changes(SHARD, changes.head) == Changes(changes.head, ())


async def test_a_new_or_late_reader_reads_the_whole_shard(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace, kept_changes=1)
    await place.put(NEIGHBOURS[0])
    head = await place.head()
    for number in range(250):  # a stream is trimmed a hundred entries at a time
        await place.put(NEIGHBOURS[1], b"%d" % number)
    for known in ("", head):
        changes = await place.directory.changes(SHARD, known)
        assert (changes.is_behind, changes.lost_after, changes.changed) == (True, None, ())
    held = await place.directory.read(SHARD)
    assert held.head == changes.head
    assert {record.name for record in held.records} == {*NEIGHBOURS[:2]}


@pytest.mark.parametrize("others_wrote", [False, True])
async def test_records_lost_in_a_rollback_are_written_again(
    redis_client: Redis, namespace: str, *, others_wrote: bool
) -> None:
    place = a_place(redis_client, namespace)
    kept, lost, deleted, edited = NEIGHBOURS[:4]
    for name in (kept, deleted, edited):
        await place.put(name)
    was = await place.held(kept, deleted, edited)
    point = version_of(await place.head())
    await place.put(lost)
    await place.put(edited, b"second")
    _, gone = await place.delete(deleted)
    held, head = await place.held(kept, lost, edited), await place.head()
    await place.lose_after(point, *was)
    if others_wrote:
        await place.put(ACCOUNT)  # a client: the shard's version is higher than ever

    changes = await place.directory.changes(SHARD, head)
    assert changes.lost_after == point
    assert named(changes) == ([("account", ACCOUNT, True)] if others_wrote else [])
    again = [record for record in held if record.version > point]
    deletions = [Change("account", deleted, gone, None, gone)]
    assert await place.directory.write_again(point, held, deletions) == 3
    assert await place.directory.write_again(point, held, deletions) == 0, "another worker does the same"
    now = {record.name: record for record in (await place.directory.read(SHARD)).records}
    assert now.keys() == {kept, lost, edited} | ({ACCOUNT} if others_wrote else set())
    assert now[kept] == held[0]
    for record in again:
        assert now[record.name].encrypted == record.encrypted
        assert (now[record.name].edited, now[record.name].written) == (record.edited, record.written)
        assert now[record.name].version > record.version, "no reader sees a version that it knows"
    assert await place.due(lost) is not None


async def test_of_two_readers_that_restore_a_record_the_later_write_wins(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    edited, deleted = NEIGHBOURS[:2]
    held: list[list[Record]] = []
    for encrypted in (b"first", b"second"):
        for name in (edited, deleted):
            await place.put(name, encrypted)
        held.append(await place.held(edited, deleted))
    _, gone = await place.delete(deleted)
    for order in ([0, 1], [1, 0], [1, 0, 1]):
        await place.lose_after(0)
        for which in order:
            await place.directory.write_again(0, held[which])
        assert [one.encrypted for one in await place.held(edited, deleted)] == [b"second"] * 2
        for which in order:
            await place.directory.write_again(0, held[which], [Change("account", deleted, gone, None, gone)])
        (record,) = await place.held(edited, deleted)
        assert (record.name, record.encrypted, record.written) == (edited, b"second", held[1][0].written)
    _, version = await place.put(edited, b"of a client", expected=record.version)
    assert (await place.held(edited))[0].written == version
    await place.directory.write_again(0, [*held[0], *held[1]], [Change("account", edited, gone, None, gone)])
    assert (await place.held(edited))[0].encrypted == b"of a client"


async def test_an_edit_on_a_server_with_a_late_clock_still_wins(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace)
    name = NEIGHBOURS[0]
    await place.put(name)
    (record,) = await place.held(name)
    ahead = record._replace(written=record.written + 10**9)
    await place.lose_after(0)
    assert await place.directory.write_again(0, [ahead]) == 1
    await place.put(name, b"of a client")
    (edited,) = await place.held(name)
    assert edited.written > ahead.written
    assert await place.directory.write_again(0, [ahead]) == 0
    head = await place.head()
    await place.delete(name)
    (deletion,) = (await place.directory.changes(SHARD, head)).changed
    assert (deletion.record, deletion.written > edited.written) == (None, True)


async def test_records_written_after_a_rollback_stay(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace)
    one, other = NEIGHBOURS[:2]
    await place.put(other)
    point = version_of(await place.head())
    for number in range(30):
        await place.put(one, b"%d" % number)
    held, head = await place.held(one, other), await place.head()
    await place.lose_after(point, *await place.held(other))
    _, version = await place.put(one, b"of a client")
    assert version > version_of(head), "however many writes there were at once"
    changes = await place.directory.changes(SHARD, head)
    assert (changes.lost_after, named(changes)) == (point, [("account", one, True)])
    assert await place.directory.write_again(point, held) == 0
    assert (await place.held(one))[0].encrypted == b"of a client"


async def test_a_wiped_store_is_given_every_record_again(redis_client: Redis, namespace: str) -> None:
    place = a_place(redis_client, namespace)
    await place.directory.put_all([an_account(name) for name in NEIGHBOURS[:50]])
    held = await place.directory.read(SHARD)
    for key in await place.store.contents():
        await place.store.pipe.command("DEL", key)
    changes = await place.directory.changes(SHARD, held.head)
    assert (changes.head, changes.is_behind, changes.lost_after) == ("", True, 0)
    await place.put(NEIGHBOURS[60])
    changes = await place.directory.changes(SHARD, held.head)
    assert (changes.is_behind, changes.lost_after) == (False, 0)
    assert named(changes) == [("account", NEIGHBOURS[60], True)]
    trimmed = a_place(redis_client, namespace, kept_changes=1)
    for number in range(250):
        await trimmed.put(NEIGHBOURS[60], b"%d" % number)
    changes = await place.directory.changes(SHARD, held.head)
    assert (changes.is_behind, changes.lost_after, changes.changed) == (True, 0, ())
    assert await place.directory.write_again(0, held.records) == 50
    assert len((await place.directory.read(SHARD)).records) == 51


async def test_an_unreadable_record_is_named_and_affects_no_other(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    one, other = NEIGHBOURS[:2]
    await place.put(NEIGHBOURS[2])
    head = await place.head()
    await place.put(one)
    await place.put(other)
    key = place.store.keys.account_records(SHARD)
    for damage in (
        b"",
        b"x",
        b"1 1 {\nx",
        b"1 1 {}",
        b"1 1 {}\n",
        b"12345678901234567 1 {}\nx",
        b"1 1 []\nx",
    ):
        await place.store.pipe.command("HSET", key, one, damage)
        with pytest.raises(BadRecord, match=f"account {one} in the directory"):
            await place.directory.get("account", one)
        held = await place.directory.read(SHARD)
        assert {record.name for record in held.records} == {other, NEIGHBOURS[2]}
        assert held.damaged == [("account", one)]
    changes = await place.directory.changes(SHARD, head)
    assert (named(changes), changes.damaged) == ([("account", other, True)], (("account", one),))
    assert (await place.put(one, b"mended")).outcome == "done"
    assert (await place.held(one))[0].encrypted == b"mended"


async def test_a_key_of_another_type_fails_a_write_before_anything_is_written(
    redis_client: Redis, namespace: str
) -> None:
    place = a_place(redis_client, namespace)
    await place.store.roster.enroll({PROVIDER: []}, now_ms=1)
    await place.put()
    keys = place.store.keys
    for key in (
        keys.account_records(SHARD),
        keys.subscription_records(SHARD),
        keys.changes(SHARD),
        keys.removed(SHARD),
        keys.polls(SHARD, PROVIDER),
        keys.failing(SHARD, PROVIDER),
    ):
        await place.store.damage(key)
        before = await place.store.contents()
        with pytest.raises(DamagedKey):
            await place.put(NEIGHBOURS[0])
        with pytest.raises(DamagedKey):
            await place.delete()
        assert await place.store.contents() == before
        await place.store.pipe.command("DEL", key)
        await place.put()
