"""What a worker does with the directory: without a running loop, on a real store."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import SECRET, a_subscription
from tests.support.directory import Programs, with_key
from tests.support.provider_staging import loopring_account, loopring_settings
from tests.support.stores import MINUTE_MS, OPS, SHARD, Store, a_store
from watcher.delivery.signing import new_secret
from watcher.encryption import Keyring, new_key
from watcher.engine.loop import Neighbours
from watcher.observe.counters import Counters
from watcher.printable import without_secrets
from watcher.providers.loopring import Loopring
from watcher.run.configured import Configured
from watcher.run.directory import NO_KEY, Followed
from watcher.settings import AccountSettings, ApiSettings, RedisSettings, Settings
from watcher.store.directory import Directory
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS

HOOK = "https://hooks.example.com/in/s3cret-path"


@dataclass
class Bench:
    """One worker's part of the directory. Its clock is late by `late_ms`, and by
    `ticks_ms` more at each look."""

    store: Store
    configured: Configured
    followed: Followed
    programs: Programs
    neighbours: Neighbours
    file: Settings
    late_ms: int = 0
    ticks_ms: int = 0

    def now_ms(self) -> int:
        self.late_ms += self.ticks_ms
        return self.store.schedule.now_ms() + self.late_ms

    async def begin(self) -> None:
        await self.followed.begin(self.file)
        await self.lay_beside(self.file)

    async def lay_beside(self, file: Settings) -> None:
        async with self.followed.reloading():
            in_force = await self.followed.lay_beside(file)
            await self.configured.drop(in_force)
            await self.configured.add(in_force)

    @property
    def accounts(self) -> list[str]:
        return sorted(self.configured.poll_work.by_provider["loopring"].accounts)

    @property
    def targets(self) -> list[str]:
        return sorted(self.configured.targets)

    async def put_account(self, name: str, **settings: Any) -> None:
        await self.programs.put_account(name, "loopring", **{"account_id": 7, **settings})

    async def put_subscription(self, name: str, **settings: Any) -> None:
        await self.programs.put_subscription(name, HOOK, **settings)

    async def lose(self) -> None:
        """Let the store lose the whole directory."""
        keys = self.store.keys
        for shard in range(SHARDS):
            for key in (keys.account_records, keys.subscription_records, keys.changes):
                await self.store.pipe.command("DEL", key(shard))


@pytest.fixture
async def bench(redis_client: Redis, namespace: str) -> AsyncIterator[Bench]:
    store = a_store(redis_client, namespace)
    await store.roster.check_layout()
    await store.schedule.read_clock()
    treasury = loopring_account()
    file = with_key(
        Settings(
            redis=RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"), namespace=namespace),
            provider_by_name={"loopring": loopring_settings()},
            account_by_name={treasury.name: treasury},
            subscription_by_name={OPS: a_subscription(OPS)},
        )
    )
    neighbours = Neighbours()

    class Agreed:
        def __init__(self) -> None:
            self.neighbours = neighbours

    directory, agreement = Directory(store.pipe, store.keys, kept_changes=3), Agreed()
    configured = Configured(file, store.schedule, StoreHealth(), Counters(), agreement)  # type: ignore[arg-type]
    async with configured:
        followed = Followed(directory, configured, neighbours, now_ms=lambda: staged.now_ms())
        staged = Bench(store, configured, followed, Programs(directory, namespace), neighbours, file)
        yield staged


def said(lines: list[Any]) -> list[tuple[str, int]]:
    return [(line["event"], line["records"]) for line in lines if "records" in line]


async def test_entries_of_the_api_are_active_beside_the_file(bench: Bench) -> None:
    await bench.put_account("alice", interval="5s")
    await bench.put_subscription("hook", accounts=["alice"])
    with capture_logs() as lines:
        await bench.begin()
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == []
    assert bench.accounts == ["alice", "treasury"]
    assert bench.targets == ["hook", OPS]
    assert bench.configured.interest.listeners("alice") == (OPS, "hook")
    assert bench.followed.settings.account_by_name["alice"].interval.total_seconds() == 5
    assert bench.followed.accounts_by_provider() == {"loopring": ["alice"]}


async def test_changes_are_applied_as_differences(bench: Bench) -> None:
    await bench.begin()
    poller = bench.configured.poll_work.by_provider["loopring"].poller
    await bench.put_account("alice")
    await bench.put_account("bob", account_id=8)
    await bench.put_subscription("hook")
    await bench.followed.follow()
    assert (bench.accounts, bench.targets) == (["alice", "bob", "treasury"], ["hook", OPS])
    assert bench.followed.names("account") == ["alice", "bob"]
    await bench.put_account("alice", interval="5s")
    await bench.programs.directory.delete("account", "bob")
    await bench.programs.directory.delete("subscription", "hook")
    await bench.followed.follow_now()
    assert (bench.accounts, bench.targets) == (["alice", "treasury"], [OPS])
    assert bench.followed.settings.account_by_name["alice"].interval.total_seconds() == 5
    assert bench.followed.names("account", after="a", limit=1) == ["alice"]
    assert bench.configured.interest.listeners("alice") == (OPS,)
    assert bench.configured.poll_work.by_provider["loopring"].poller is poller


async def test_the_file_wins_and_the_record_it_shadows_is_inactive(bench: Bench) -> None:
    await bench.put_account("treasury", account_id=99)
    await bench.put_subscription(OPS)
    with capture_logs() as lines:
        await bench.begin()
        await bench.put_subscription(OPS, max_in_flight=3)
        await bench.programs.directory.delete("account", "treasury")
        await bench.put_account("treasury", account_id=98)
        await bench.followed.follow()
        assert bench.configured.targets[OPS].settings is bench.file.subscription_by_name[OPS]
        treasury = bench.file.account_by_name["treasury"]
        assert bench.followed.settings.account_by_name["treasury"] is treasury
        await bench.lay_beside(bench.file.model_copy())
    assert said(lines) == [("directory.shadowed", 2)], "once"
    assert bench.configured.targets[OPS].settings is bench.file.subscription_by_name[OPS]
    assert bench.followed.accounts_by_provider() == {}
    assert bench.followed.defines("subscription", OPS)
    none: dict[str, Any] = {"account_by_name": {}, "subscription_by_name": {}}
    await bench.lay_beside(bench.file.model_copy(update=none))
    assert (bench.accounts, bench.targets) == (["treasury"], [OPS]), "as the directory has them"
    assert bench.configured.targets[OPS].settings.max_in_flight == 3
    await bench.lay_beside(bench.file)
    assert bench.configured.targets[OPS].settings is bench.file.subscription_by_name[OPS]


async def test_a_worker_without_the_key_queues_events_and_leaves_the_rest_to_others(bench: Bench) -> None:
    bench.file = bench.file.model_copy(update={"api": None})
    with capture_logs() as lines:
        await bench.begin()
        await bench.put_account("alice")
        await bench.put_subscription("hook", accounts=["treasury"])
        await bench.followed.follow()
        await bench.put_account("alice", interval="5s")
        await bench.followed.follow()
    assert said(lines) == [("directory.locked", 2)], "once"
    assert [line["reason"] for line in lines if line["event"] == "directory.locked"] == [NO_KEY]
    assert (bench.accounts, bench.targets) == (["treasury"], [OPS])
    assert bench.configured.interest.listeners("treasury") == (OPS, "hook")
    assert "alice" in bench.neighbours.locked_accounts
    assert "hook" in bench.neighbours.locked_subscriptions
    assert bench.followed.accounts_by_provider() == {"loopring": ["alice"]}, "it stays on the schedule"
    await bench.lay_beside(with_key(bench.file, new_key()))
    assert (bench.accounts, bench.targets) == (["treasury"], [OPS]), "that is another key"
    await bench.lay_beside(with_key(bench.file))
    assert (bench.accounts, bench.targets) == (["alice", "treasury"], ["hook", OPS])
    assert "alice" not in bench.neighbours.locked_accounts
    assert "hook" not in bench.neighbours.locked_subscriptions


async def test_events_wait_until_a_url_is_verified(bench: Bench) -> None:
    await bench.begin()
    await bench.put_subscription("hook", is_verified=False)
    await bench.followed.follow()
    known = bench.followed.get("subscription", "hook")
    assert known
    assert (known.state, bench.targets) == ("unverified", [OPS])
    assert [(one.settings.name, one.since_ms) for one in bench.followed.unverified()] == [("hook", 1)]
    assert bench.configured.interest.listeners("treasury") == (OPS, "hook")
    assert "hook" in bench.followed.settings.subscription_by_name
    await bench.put_subscription("hook")
    await bench.followed.follow()
    assert bench.targets == ["hook", OPS]


async def test_an_expired_secret_signs_no_more(bench: Bench) -> None:
    await bench.begin()
    now_ms, old = bench.store.schedule.now_ms(), new_secret()
    await bench.put_subscription("hook", secrets={SECRET: None, old: now_ms + MINUTE_MS})
    await bench.followed.follow()
    assert len(bench.configured.targets["hook"].settings.secrets) == 2
    bench.late_ms = 2 * MINUTE_MS
    await bench.followed.follow()
    secrets = bench.configured.targets["hook"].settings.secrets
    assert [secret.get_secret_value() for secret in secrets] == [SECRET]


async def test_a_clock_that_ticks_during_a_lookup_does_not_invalidate_a_token(bench: Bench) -> None:
    await bench.begin()
    await bench.put_subscription("hook", tokens={"aa": None})
    await bench.followed.follow()
    bench.ticks_ms = 1
    assert bench.followed.by_token("aa") == "hook"


async def test_a_token_leads_to_its_subscription_until_it_ends(bench: Bench) -> None:
    await bench.begin()
    now_ms = bench.store.schedule.now_ms()
    await bench.put_subscription("hook", tokens={"aa": None, "bb": now_ms + MINUTE_MS})
    await bench.followed.follow()
    assert [bench.followed.by_token(one) for one in ("aa", "bb", "cc")] == ["hook", "hook", None]
    bench.late_ms = 2 * MINUTE_MS
    assert [bench.followed.by_token(one) for one in ("aa", "bb")] == ["hook", None]
    await bench.programs.directory.delete("subscription", "hook")
    await bench.followed.follow()
    assert bench.followed.by_token("aa") is None


async def test_a_source_belongs_to_one_account_of_the_file_or_the_directory(bench: Bench) -> None:
    await bench.begin()
    await bench.put_account("alice", account_id=7)
    await bench.followed.follow()
    alice = bench.followed.get("account", "alice")
    assert alice
    assert alice.source
    assert bench.followed.holder(alice.source) == "alice"
    await bench.put_account("alice", account_id=8)
    await bench.followed.follow()
    assert bench.followed.holder(alice.source) is None
    source = Loopring(loopring_settings()).source(loopring_account())
    assert bench.followed.holder(("loopring", source)) == "treasury"


async def test_an_unusable_record_is_inactive_and_affects_no_other(bench: Bench) -> None:
    await bench.begin()
    await bench.programs.put_account("alice", "elsewhere", account_id=7)
    await bench.programs.put_account("bob", "loopring", account_id=8, unheard_of=1)
    await bench.programs.put_subscription("inside", "https://127.0.0.1/in")
    await bench.put_account("carol", account_id=9)
    with capture_logs() as lines:
        await bench.followed.follow()
    assert bench.accounts == ["carol", "treasury"]
    states = {name: bench.followed.get("account", name) for name in ("alice", "bob", "carol")}
    assert [one and one.state for one in states.values()] == ["unfit", "unfit", "in_force"]
    assert sum(count for event, count in said(lines) if event == "directory.locked") == 3
    assert bench.configured.interest.listeners("treasury") == (OPS, "inside"), "its events wait"
    assert bench.targets == [OPS]


async def test_a_worker_that_missed_too_many_changes_reads_everything_again(bench: Bench) -> None:
    """What was deleted meanwhile is gone, and nothing else is."""
    for number in range(3):
        await bench.put_account(f"a{number}", account_id=100 + number)
    await bench.begin()
    await bench.programs.directory.delete("account", "a0")
    for number in range(300):  # far more than are kept
        await bench.put_subscription("hook", max_in_flight=1 + number)
        await bench.put_account("a1", account_id=101, interval=f"{1 + number}s")
    await bench.followed.follow()
    assert bench.accounts == ["a1", "a2", "treasury"]
    assert bench.followed.names("account") == ["a1", "a2"]
    assert bench.configured.targets["hook"].settings.max_in_flight == 300


async def test_a_lost_directory_is_written_again(bench: Bench) -> None:
    await bench.begin()
    await bench.put_account("alice")
    await bench.put_account("bob", account_id=8)
    await bench.put_subscription("hook")
    await bench.followed.follow()
    await bench.programs.directory.delete("account", "bob")
    await bench.followed.follow()
    targets = {**bench.configured.targets}
    await bench.lose()
    with capture_logs() as lines:
        await bench.followed.follow()
        await bench.followed.follow()
    assert sum(count for event, count in said(lines) if event == "directory.restored") == 2
    assert (bench.accounts, bench.targets) == (["alice", "treasury"], ["hook", OPS])
    assert bench.configured.targets == targets, "nothing was opened anew"
    assert await bench.programs.directory.counts() == {"account": 1, "subscription": 1}


async def test_a_record_deleted_right_after_a_loss_is_not_written_again(
    bench: Bench,
) -> None:
    await bench.begin()
    await bench.put_subscription("hook")
    await bench.followed.follow()
    await bench.lose()
    await bench.followed.follow()  # and has not looked yet what it gave back
    assert (await bench.programs.directory.delete("subscription", "hook")).outcome == "done"
    for _ in range(2):
        await bench.followed.follow()
    assert (bench.targets, bench.followed.names("subscription")) == ([OPS], [])
    assert await bench.programs.directory.counts() == {"account": 0, "subscription": 0}


async def test_records_of_an_older_key_are_encrypted_again_and_no_longer_need_it(bench: Bench) -> None:
    await bench.begin()
    await bench.put_account("alice")
    await bench.put_account("treasury", account_id=9)  # the file has it: it rests
    await bench.put_subscription("hook")
    records = [bench.programs.directory.get("account", name) for name in ("alice", "treasury")]
    before = [*(await asyncio.gather(*records)), await bench.programs.directory.get("subscription", "hook")]
    key = SecretStr(new_key())
    assert bench.file.api
    both = ApiSettings(secret_key=(key, *bench.file.api.secret_key))
    await bench.followed.follow()
    await bench.lay_beside(bench.file.model_copy(update={"api": both}))
    targets = {**bench.configured.targets}
    with capture_logs() as lines:
        for _ in range(3):
            await bench.followed.encrypt_again()
            await bench.followed.follow()
    assert said(lines) == [("directory.resealed", 3)]
    assert bench.configured.targets == targets, "nothing was opened anew"
    keyring = Keyring([key.get_secret_value()], bench.file.redis.namespace)
    for record in before:
        assert record
        now = await bench.programs.directory.get(record.kind, record.name)
        assert now
        assert (now.edited, now.plain, keyring.is_current(now.encrypted)) == (
            record.edited,
            record.plain,
            True,
        )
        keyring.decrypt(now.kind, now.name, now.plain, now.encrypted)
    await bench.lay_beside(bench.file.model_copy(update={"api": ApiSettings(secret_key=(key,))}))
    counted = [bench.followed.count(kind, "in_force", "shadowed") for kind in ("account", "subscription")]
    assert counted == [bench.followed.count(kind) for kind in ("account", "subscription")]
    assert (await bench.store.scores(bench.store.keys.removed(SHARD))) == {}


async def test_encrypting_again_never_undoes_a_newer_write(
    bench: Bench,
) -> None:
    await bench.begin()
    await bench.put_account("alice", interval="20s")
    await bench.followed.follow()
    both = ApiSettings(
        secret_key=(SecretStr(new_key()), *(bench.file.api.secret_key if bench.file.api else ()))
    )
    await bench.lay_beside(bench.file.model_copy(update={"api": both}))
    await bench.put_account("alice", interval="30s")  # it was not followed yet
    await bench.followed.encrypt_again()
    await bench.followed.follow()
    alice = bench.followed.get("account", "alice")
    assert alice
    assert isinstance(alice.settings, AccountSettings)
    assert alice.settings.interval.total_seconds() == 30
    await bench.followed.encrypt_again()
    await bench.followed.follow()
    assert (await bench.programs.directory.get("account", "alice")) != alice.record, (
        "now it is encrypted anew"
    )


async def test_records_are_counted_by_their_state(bench: Bench) -> None:
    await bench.begin()
    await bench.put_account("alice")
    await bench.put_account("treasury", account_id=99)
    await bench.programs.put_account("bob", "elsewhere", account_id=8)
    await bench.put_subscription("hook", is_verified=False)
    await bench.followed.follow()
    count = bench.followed.count
    assert [count("account", state) for state in ("in_force", "shadowed", "unfit", "locked")] == [1, 1, 1, 0]
    assert (count("account"), count("subscription", "unverified")) == (3, 1)
    await bench.programs.directory.delete("account", "bob")
    await bench.put_subscription("hook")
    await bench.followed.follow()
    assert (count("account"), count("account", "unfit"), count("subscription", "unverified")) == (2, 0, 0)
    assert bench.followed.behind_s == 0


async def test_no_secret_of_a_record_is_shown(bench: Bench) -> None:
    secret = new_secret()
    await bench.begin()
    await bench.put_subscription(
        "hook", secrets={secret: None}, headers={"authorization": "Bearer t0ken-of-it"}
    )
    await bench.followed.follow()
    for text in (secret, HOOK, "Bearer t0ken-of-it"):
        assert text not in without_secrets(f"it was {text}, as it seems")
