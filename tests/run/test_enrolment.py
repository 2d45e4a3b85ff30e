"""Which accounts are enrolled while workers with different lists run side by side, as in a deploy."""

from collections.abc import Sequence

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import a_provider, an_account
from tests.support.stores import Store, a_commit, a_store
from watcher.observe.counters import Counters
from watcher.run.members import Accounts, Enrolment, Present
from watcher.service.serve import worker_name
from watcher.settings import Settings
from watcher.store.directory import Directory, Write
from watcher.store.keys import SHARDS
from watcher.store.members import Workers

OLD, NEW = ("treasury", "leaving"), ("treasury", "coming")


class Deploy:
    """Workers of one namespace, each with its list of accounts; all that they do is to enrol."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.workers = Workers(store.pipe, store.keys)

    async def start(self, worker: str, names: Sequence[str], added: Sequence[str] = ()) -> Enrolment:
        present = Present(worker, self.workers, Counters(), since_ms=0)
        accounts = {name: an_account(name) for name in names}
        settings = Settings(
            provider_by_name={"loopring": a_provider()}, account_by_name=accounts, subscription_by_name={}
        )
        enrolment = Enrolment(
            Accounts.of(settings),
            self.store.schedule,
            self.store.roster,
            present,
            beside=lambda: {"loopring": added},
        )
        await enrolment.begin()
        return enrolment

    async def scheduled(self) -> set[str]:
        shards = [
            await self.store.scores(self.store.keys.polls(shard, "loopring")) for shard in range(SHARDS)
        ]
        return {name for shard in shards for name in shard}

    async def poll(self, account: str) -> None:
        """Give an account its baseline."""
        await self.store.polls.commit(a_commit(await self.store.lease(account), ETH="1"))

    async def turn_back(self, *, minutes: int) -> None:
        """Move the removal of accounts into the past."""
        for shard in range(SHARDS):
            key = self.store.keys.removed(shard)
            for name in await self.store.scores(key):
                await self.store.pipe.command("ZINCRBY", key, -60_000 * minutes, name)

    async def has_state(self, account: str) -> bool:
        return bool(await self.store.polls.read_state("loopring", account))


@pytest.fixture
async def deploy(redis_client: Redis, namespace: str) -> Deploy:
    store = a_store(redis_client, namespace)
    await store.roster.check_layout()
    await store.schedule.read_clock()
    return Deploy(store)


async def test_a_single_worker_removes_missing_accounts_at_once_and_logs_until_when_they_are_kept(
    deploy: Deploy,
) -> None:
    await deploy.start("w", OLD)
    await deploy.poll("leaving")
    with capture_logs() as lines:
        new = await deploy.start("w", NEW)
    assert await deploy.scheduled() == {*NEW}
    assert await deploy.has_state("leaving")
    (line,) = lines
    assert (line["event"], line["log_level"], line["accounts"], line["names"]) == (
        "accounts.removed",
        "warning",
        1,
        ["leaving"],
    )
    assert "forgotten in 10 minutes unless" in line["reason"]
    await deploy.turn_back(minutes=9)
    new._forget_at = 0.0
    await new.keep()
    assert await deploy.has_state("leaving")
    await deploy.turn_back(minutes=1)
    new._forget_at = 0.0
    with capture_logs() as lines:
        await new.keep()
    assert not await deploy.has_state("leaving")
    assert lines == [{"event": "accounts.forgotten", "log_level": "info", "accounts": 1}]


async def test_an_account_added_again_within_ten_minutes_goes_on_from_its_state(deploy: Deploy) -> None:
    await deploy.start("w", OLD)
    await deploy.poll("leaving")
    await deploy.start("w", OLD[:1])
    await deploy.turn_back(minutes=9)
    back = await deploy.start("w", OLD)
    await deploy.turn_back(minutes=100)
    back._forget_at = 0.0
    await back.keep()
    assert await deploy.scheduled() == {*OLD}
    assert await deploy.has_state("leaving")


async def test_a_short_run_forgets_accounts_that_others_removed(deploy: Deploy) -> None:
    await deploy.start("w", OLD)
    await deploy.poll("leaving")
    await deploy.start("w", OLD[:1])
    await deploy.turn_back(minutes=10)
    await deploy.start("w", OLD[:1])
    assert not await deploy.has_state("leaving")


async def test_workers_with_one_list_in_any_order_agree(deploy: Deploy) -> None:
    await deploy.start("first", OLD)
    await deploy.start("second", OLD[::-1])
    await deploy.start("second", OLD[:1])
    assert await deploy.scheduled() == {*OLD}, "the first one still has it"
    await deploy.start("first", OLD[:1])
    assert await deploy.scheduled() == {*OLD[:1]}


async def test_during_a_deploy_both_lists_are_polled_and_afterwards_the_new_one(
    deploy: Deploy,
) -> None:
    old = await deploy.start("old", OLD)
    await deploy.poll("leaving")
    new = await deploy.start("new", NEW)
    for _ in range(3):
        for enrolment in (old, new):
            assert not await enrolment.keep()
        assert await deploy.scheduled() == {*OLD, *NEW}
    await deploy.workers.leave("old")
    await new.keep()
    assert await deploy.scheduled() == {*NEW}


async def test_an_old_worker_restarted_during_a_deploy_removes_no_account(deploy: Deploy) -> None:
    await deploy.start("old", OLD)
    new = await deploy.start("new", NEW)
    await deploy.poll("coming")
    await deploy.workers.leave("old")
    await new.keep()
    again = await deploy.start("old", OLD)
    for enrolment in (new, again):
        await enrolment.keep()
    assert await deploy.scheduled() == {*OLD, *NEW}
    assert await deploy.has_state("coming"), "its journal goes on"
    await deploy.workers.leave("old")
    await new.keep()
    assert await deploy.scheduled() == {*NEW}


async def test_a_deploy_that_is_rolled_back_ends_with_the_old_list(deploy: Deploy) -> None:
    await deploy.start("old", OLD)
    await deploy.start("new", NEW)
    back = await deploy.start("back", OLD)
    for gone in ("old", "new"):
        await deploy.workers.leave(gone)
    await back.keep()
    assert await deploy.scheduled() == {*OLD}


async def test_a_dead_worker_keeps_no_account_enrolled_for_long(deploy: Deploy) -> None:
    await deploy.start("old", OLD)
    new = await deploy.start("new", NEW)
    key = deploy.store.keys.workers()
    said = await deploy.store.pipe.command("HGET", key, "old")
    seen_ms, _, rest = said.partition(b" ")
    await deploy.store.pipe.command("HSET", key, "old", b"%d %s" % (int(seen_ms) - 46_000, rest))
    await new.keep()
    assert await deploy.scheduled() == {*NEW}


async def test_an_account_removed_by_an_unseen_worker_is_enrolled_again_within_a_second(
    deploy: Deploy,
) -> None:
    new = await deploy.start("new", NEW)
    await deploy.store.roster.enroll({"loopring": OLD}, now_ms=0)
    await deploy.store.roster.note_enrolled("of a worker that may not note itself")
    await new.keep()
    assert await deploy.scheduled() == {*NEW}


async def test_a_loss_of_state_is_logged_by_one_worker(deploy: Deploy) -> None:
    workers = [await deploy.start(name, OLD) for name in ("first", "second")]
    for key in await deploy.store.contents():
        await deploy.store.pipe.command("UNLINK", key)
    assert [await worker.keep() for worker in workers] == [True, False]
    assert await deploy.scheduled() == {*OLD}


async def test_checking_for_changes_takes_one_command(
    deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await deploy.start("w", OLD)
    asked = []
    command = deploy.store.pipe.command

    async def noted(*parts: object) -> object:
        asked.append(parts[0])
        return await command(*parts)

    monkeypatch.setattr(deploy.store.pipe, "command", noted)
    await worker.keep()
    assert asked == ["HMGET"]


async def test_an_outdated_configuration_removes_no_account(deploy: Deploy) -> None:
    present = Present("w", deploy.workers, Counters(), since_ms=0)
    accounts = [{name: an_account(name) for name in names} for names in (OLD, NEW)]
    before, after = (
        Enrolment(
            Accounts.of(
                Settings(
                    provider_by_name={"loopring": a_provider()},
                    account_by_name=each,
                    subscription_by_name={},
                )
            ),
            deploy.store.schedule,
            deploy.store.roster,
            present,
        )
        for each in accounts
    )
    await before.begin()
    await after.begin()
    await before.keep()  # it was about to look when it was stopped
    assert {*NEW} <= await deploy.scheduled()


def test_workers_with_equal_host_names_and_process_ids_are_distinct() -> None:
    """Two of one name would be blind to each other's lists, and each would forget the other's accounts."""
    assert len({worker_name() for _ in range(5)}) > 1


async def test_an_account_just_added_by_the_api_stays_on_the_schedule(deploy: Deploy) -> None:
    """The worker that enrols its list may not know of it yet."""
    directory = Directory(deploy.store.pipe, deploy.store.keys)
    await deploy.start("w", OLD)
    await directory.put(Write("account", "added", {"provider": "loopring"}, b"encrypted"))
    await deploy.start("w", NEW)
    assert await deploy.scheduled() == {*NEW, "added"}
    await directory.delete("account", "added")
    assert await deploy.scheduled() == {*NEW}


async def test_accounts_of_the_api_are_scheduled_again_after_the_schedules_were_lost(deploy: Deploy) -> None:
    worker = await deploy.start("w", OLD, added=("added",))
    for shard in range(SHARDS):
        await deploy.store.pipe.command("DEL", deploy.store.keys.polls(shard, "loopring"))
    await worker.begin()
    assert await deploy.scheduled() == {*OLD, "added"}
