"""Workers of one namespace with different configurations: which is inactive, for how long, and the log."""

import asyncio
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import SECRET, a_provider, a_subscription
from watcher.pause import compute
from watcher.providers.loopring import LoopringAccount, LoopringSettings
from watcher.run import agreement
from watcher.run.agreement import AT_THE_START_S, OTHER_PLACE_S, SAME_PLACE_S, Agreement, fingerprint
from watcher.run.members import Present
from watcher.settings import RedisSettings, Settings
from watcher.store.exceptions import ConfigurationRefused
from watcher.store.keys import Keys
from watcher.store.members import Configurations, Fingerprint, Presence
from watcher.store.pipe import Pipe

OLD_URL, NEW_URL = "https://old.example.com/T0/hook-token-7f", "https://new.example.com/hook"


class Fleet:
    """Workers, which of them are there, and what time it is."""

    def __init__(self, client: Redis, namespace: str) -> None:
        self.keys = Keys(namespace)
        self.pipe = Pipe(client)
        self.configurations = Configurations(self.pipe, self.keys)
        self.now_s = 1_000_000.0
        self.configuration_by_worker: dict[str, str] = {}

    async def start(self, worker: str, settings: Settings) -> Agreement:
        one = Agreement(
            cast(Present, _Present(self, worker)),
            self.configurations,
            now_ms=lambda: int(1000 * self.now_s),
            clock=lambda: self.now_s,
        )
        await one.begin(settings)
        return one

    def stop(self, worker: str) -> None:
        del self.configuration_by_worker[worker]

    async def later(self, wait_s: float, *agreements: Agreement) -> None:
        """Let time pass; running workers compare configurations meanwhile."""
        until = self.now_s + wait_s
        while self.now_s < until:
            self.now_s = min(until, self.now_s + 5)
            for one in agreements:
                await one.look()


class _Present:
    def __init__(self, fleet: Fleet, worker: str) -> None:
        self._fleet, self._worker = fleet, worker

    async def runs(self, configuration: str) -> None:
        self._fleet.configuration_by_worker[self._worker] = configuration

    async def others(self, _now_ms: int) -> list[Presence]:
        there = self._fleet.configuration_by_worker.items()
        return [
            Presence(name, "here", 1, "0", 0, {}, configuration=digest)
            for name, digest in there
            if name != self._worker
        ]


def some(
    url: str = OLD_URL,
    *,
    base_url: str = "https://api.example.com",
    accounts: Mapping[str, int] | None = None,
    **more: Any,
) -> Settings:
    """One deployment: a provider, its accounts, and the subscription `ops` for all of them."""
    provider = LoopringSettings(name="loopring", kind="loopring", base_url=base_url, api_key=SecretStr("key"))
    return Settings(
        redis=RedisSettings(url=SecretStr(more.pop("redis", "redis://127.0.0.1/0")), namespace="watcher"),
        provider_by_name={"loopring": provider},
        account_by_name={
            name: LoopringAccount(name=name, provider="loopring", account_id=number)
            for name, number in (accounts or {"treasury": 1}).items()
        },
        subscription_by_name={"ops": a_subscription(url=url), **more},
    )


PRODUCTION = some(accounts={"treasury": 1, "prod": 2})
STAGING = some(NEW_URL, base_url="https://sandbox.example.com", accounts={"treasury": 1, "staging": 3})

STAGING_LATER = some(NEW_URL, base_url="https://sandbox.example.com", accounts={"treasury": 1, "later": 4})


@pytest.fixture
def fleet(redis_client: Redis, namespace: str) -> Fleet:
    return Fleet(redis_client, namespace)


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as found:
        yield found


def is_ours(worker: Agreement, subscription: str) -> bool:
    """Whether a worker delivers to a subscription that it knows."""
    return subscription not in worker.neighbours.inactive


def contested(worker: Agreement) -> set[str]:
    """The accounts of PRODUCTION and of STAGING that another worker has elsewhere."""
    return {name for name in ("treasury", "prod", "staging") if name in worker.neighbours.contested}


def names_logged(lines: list[MutableMapping[str, Any]]) -> list[list[str]]:
    return [line["names"] for line in lines if line["event"] == "configuration.differs"]


async def test_workers_with_one_configuration_deliver_side_by_side_and_log_nothing(
    fleet: Fleet, lines: list[MutableMapping[str, Any]]
) -> None:
    first, second = await fleet.start("a", PRODUCTION), await fleet.start("b", PRODUCTION)
    await first.look()
    for one in (first, second):
        assert is_ours(one, "ops")
        assert "treasury" not in one.neighbours.left
        assert not one.differences
    assert lines == []


async def test_a_worker_with_another_url_does_not_deliver_what_was_queued_for_the_first(
    fleet: Fleet, lines: list[MutableMapping[str, Any]]
) -> None:
    production, staging = await fleet.start("p", PRODUCTION), await fleet.start("s", STAGING)
    await production.look()
    assert (is_ours(production, "ops"), is_ours(staging, "ops")) == (True, False)
    both = ["provider loopring", "subscription ops", "account treasury"]
    assert names_logged(lines) == [both, both], "each side logs it once"
    await fleet.later(120, production, staging)
    assert len(names_logged(lines)) == 2
    assert [one.worker for one in production.differences] == ["s"]


async def test_a_restarted_deployment_finds_its_queues_as_they_were(fleet: Fleet) -> None:
    production, staging = await fleet.start("p1", PRODUCTION), await fleet.start("s", STAGING)
    fleet.stop("p1")
    await fleet.later(300, staging)
    assert not is_ours(staging, "ops")
    production = await fleet.start("p2", PRODUCTION)
    await fleet.later(60, production, staging)
    assert (is_ours(production, "ops"), is_ours(staging, "ops")) == (True, False)


async def test_a_deployment_does_not_take_the_queues_of_another_that_restarts(
    fleet: Fleet,
) -> None:
    await fleet.start("p1", PRODUCTION)
    fleet.stop("p1")
    staging = await fleet.start("s", STAGING)
    await fleet.later(AT_THE_START_S - 5, staging)
    assert not is_ours(staging, "ops")
    assert staging.has_neighbours
    assert not staging.neighbours.may_poll(
        "treasury", "own", fingerprint(PRODUCTION).accounts["treasury"] + "16 more"
    )
    production = await fleet.start("p2", PRODUCTION)
    await fleet.later(60, production, staging)
    assert (is_ours(production, "ops"), is_ours(staging, "ops")) == (True, False)


async def test_short_runs_wait_ten_minutes_in_all_for_a_missing_deployment(fleet: Fleet) -> None:
    """As `run --once` from cron: each would begin to wait anew, for as long as the other one is known."""
    await fleet.start("p", PRODUCTION)
    fleet.stop("p")
    for _ in range(10):
        assert not is_ours(await fleet.start("s", STAGING), "ops")
        fleet.stop("s")
        await fleet.later(OTHER_PLACE_S / 10)
    staging = await fleet.start("s", STAGING)
    assert is_ours(staging, "ops")
    assert "staging" not in staging.neighbours.left


async def test_a_deployment_that_runs_now_and_then_does_not_count_as_missing(fleet: Fleet) -> None:
    for _ in range(15):
        assert is_ours(await fleet.start("p", PRODUCTION), "ops")
        fleet.stop("p")
        assert not is_ours(await fleet.start("s", STAGING), "ops")
        fleet.stop("s")
        await fleet.later(60)


async def test_waiting_for_a_missing_deployment_is_logged(
    fleet: Fleet, lines: list[MutableMapping[str, Any]]
) -> None:
    await fleet.start("p1", PRODUCTION)
    fleet.stop("p1")
    staging = await fleet.start("s", STAGING)
    assert names_logged(lines) == [["provider loopring", "subscription ops", "account treasury"]]
    assert "gone" in lines[0]["worker"]
    await fleet.later(AT_THE_START_S + 60, staging)
    assert is_ours(staging, "ops")
    assert not staging.differences
    assert lines[-1]["event"] == "configuration.agrees"


async def test_a_changed_provider_concerns_no_other_worker_while_the_url_is_the_same(
    fleet: Fleet,
) -> None:
    await fleet.start("a", some())
    fleet.stop("a")
    again = await fleet.start("b", some(base_url="https://other.example.com", accounts={"treasury": 7}))
    assert is_ours(again, "ops")
    assert "treasury" not in again.neighbours.contested


async def test_after_a_loss_of_state_each_worker_notes_its_configuration_again(
    fleet: Fleet, redis_client: Redis
) -> None:
    production = await fleet.start("p", PRODUCTION)
    await redis_client.delete(fleet.keys.marks(), fleet.keys.configuration(fingerprint(PRODUCTION).digest))
    await fleet.later(10, production)
    staging = await fleet.start("s", STAGING)
    assert (is_ours(production, "ops"), is_ours(staging, "ops")) == (True, False)


async def test_a_deployment_that_never_returns_leaves_its_names_to_the_other_one(fleet: Fleet) -> None:
    await fleet.start("p", PRODUCTION)
    staging = await fleet.start("s", STAGING)
    fleet.stop("p")
    await fleet.later(OTHER_PLACE_S - 10, staging)
    assert not is_ours(staging, "ops")
    await fleet.later(20, staging)
    assert is_ours(staging, "ops")
    assert "staging" not in staging.neighbours.left
    assert "treasury" not in staging.neighbours.contested


async def test_a_new_url_takes_the_backlog_at_a_restart_and_at_a_reload(fleet: Fleet) -> None:
    await fleet.start("a", some(OLD_URL))
    fleet.stop("a")
    again = await fleet.start("b", some(NEW_URL))
    assert is_ours(again, "ops")
    await again.begin(some(OLD_URL))
    assert is_ours(again, "ops")
    await again.begin(some(NEW_URL, base_url="https://other.example.com"))
    assert is_ours(again, "ops"), "its own earlier configuration is no other deployment's"


async def test_a_new_url_takes_the_backlog_when_the_last_worker_was_reloaded(fleet: Fleet) -> None:
    first, second = await fleet.start("a", some(OLD_URL)), await fleet.start("b", some(OLD_URL))
    await first.begin(some(NEW_URL))
    await second.look()
    assert (is_ours(first, "ops"), is_ours(second, "ops")) == (False, True)
    await second.begin(some(NEW_URL))
    await first.look()
    assert (is_ours(first, "ops"), is_ours(second, "ops")) == (True, True)


async def test_a_new_url_takes_the_backlog_when_the_last_worker_was_restarted(fleet: Fleet) -> None:
    for worker in ("a1", "b1"):
        await fleet.start(worker, some(OLD_URL))
    fleet.stop("a1")
    first = await fleet.start("a2", some(NEW_URL))
    assert not is_ours(first, "ops")
    fleet.stop("b1")
    second = await fleet.start("b2", some(NEW_URL))
    await first.look()
    assert (is_ours(first, "ops"), is_ours(second, "ops")) == (True, True)


async def test_a_new_url_takes_the_backlog_soon_after_the_old_worker_ended_beside_the_new_one(
    fleet: Fleet, lines: list[MutableMapping[str, Any]]
) -> None:
    old = await fleet.start("old", some(OLD_URL))
    new = await fleet.start("new", some(NEW_URL))
    assert not is_ours(new, "ops")
    assert "treasury" not in new.neighbours.left, "the old one has it, and delivers what is queued"
    fleet.stop("old")
    await fleet.later(SAME_PLACE_S - 5, new)
    assert not is_ours(new, "ops")
    await fleet.later(10, new)
    assert is_ours(new, "ops")
    await fleet.later(60, new)
    assert [line["event"] for line in lines] == ["configuration.differs", "configuration.agrees"]
    del old


async def test_an_account_whose_events_would_wait_for_another_deployment_is_not_polled(fleet: Fleet) -> None:
    production, staging = await fleet.start("p", PRODUCTION), await fleet.start("s", STAGING)
    await production.look()
    assert "staging" in staging.neighbours.left
    assert "prod" not in production.neighbours.left
    assert not production.neighbours.is_alone, "another worker polls what it does not know"


async def test_accounts_left_to_another_deployment_follow_a_reload(fleet: Fleet) -> None:
    await fleet.start("p", PRODUCTION)
    staging = await fleet.start("s", STAGING)
    await staging.begin(STAGING_LATER)
    assert "later" in staging.neighbours.left
    assert "staging" not in staging.neighbours.left


async def test_a_reload_during_a_comparison_wins(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    await fleet.start("p", PRODUCTION)
    staging = await fleet.start("s", some(NEW_URL, base_url="https://sandbox.example.com"))
    reloads = iter((STAGING, STAGING_LATER))

    async def with_a_reload_in_between(do: Any, *arguments: Any) -> Any:
        answer = await compute(do, *arguments)
        if do is agreement._left and (settings := next(reloads, None)):
            await staging.begin(settings)
        return answer

    monkeypatch.setattr(agreement, "compute", with_a_reload_in_between)
    await staging.begin(STAGING)
    assert "later" in staging.neighbours.left
    assert "staging" not in staging.neighbours.left


async def test_a_reloaded_worker_notes_its_configuration_at_once(fleet: Fleet) -> None:
    one = await fleet.start("a", some())
    await one.look()
    await one.begin(STAGING)
    digest = fingerprint(STAGING).digest
    assert fleet.configuration_by_worker == {"a": digest}
    assert await fleet.configurations.read(digest) == fingerprint(STAGING)


async def test_a_subscription_belongs_to_the_last_configuration_that_named_its_url(fleet: Fleet) -> None:
    await fleet.start("a", some())
    fleet.stop("a")
    later = some(accounts={"treasury": 1, "more": 2})
    await fleet.start("b", later)
    assert (await fleet.configurations.marks(["ops"]))["ops"].configuration == fingerprint(later).digest


async def test_a_worker_that_left_is_no_difference_but_still_waited_for(fleet: Fleet) -> None:
    await fleet.start("p", some(base_url="https://other.example.com"))
    one = await fleet.start("s", some())
    assert [difference.worker for difference in one.differences] == ["p"]
    fleet.stop("p")
    await one.look()
    assert not one.differences
    assert "treasury" in one.neighbours.contested, "it may only be restarting"


async def test_a_worker_that_agrees_now_no_longer_differs(fleet: Fleet) -> None:
    production, other = await fleet.start("p", PRODUCTION), await fleet.start("o", STAGING)
    await production.look()
    assert production.has_neighbours
    await other.begin(PRODUCTION)
    await production.look()
    assert not production.differences
    assert not production.has_neighbours


async def test_a_present_worker_is_compared_with_the_reloaded_configuration(fleet: Fleet) -> None:
    await fleet.start("p", PRODUCTION)
    staging = await fleet.start("s", STAGING)
    await staging.begin(some(NEW_URL, base_url="https://sandbox.example.com", accounts={"prod": 2}))
    assert contested(staging) == {"prod"}


async def test_workers_that_differ_in_the_same_way_are_one_difference(fleet: Fleet) -> None:
    production = await fleet.start("p", PRODUCTION)
    for worker in ("s1", "s2"):
        await fleet.start(worker, STAGING)
    await production.look()
    assert [one.worker for one in production.differences] == ["s1"]


async def test_an_account_is_polled_by_a_worker_that_delivers_its_queues(
    fleet: Fleet,
) -> None:
    both = {"treasury": 1, "more": 2}
    await fleet.start("old", some(OLD_URL))
    await fleet.start("older", some(OLD_URL, accounts=both))
    new = await fleet.start("new", some(NEW_URL, accounts=both | {"newest": 3}))
    assert not is_ours(new, "ops")
    assert new.neighbours.left == {"newest"}


async def test_a_long_running_worker_notes_its_configuration_again(fleet: Fleet, redis_client: Redis) -> None:
    one, digest = await fleet.start("a", some()), fingerprint(some()).digest
    await one.look()
    await redis_client.delete(fleet.keys.configuration(digest))
    await fleet.later(600, one)
    assert await fleet.configurations.read(digest) is None, "not at each look"
    await fleet.later(700, one)
    assert await fleet.configurations.read(digest) == fingerprint(some())


async def test_a_comparison_changes_no_note_of_another_worker(fleet: Fleet) -> None:
    one, later = await fleet.start("a", some()), some(accounts={"treasury": 1, "more": 2})
    await fleet.start("b", later)
    await one.look()
    assert (await fleet.configurations.marks(["ops"]))["ops"].configuration == fingerprint(later).digest


async def test_a_missing_worker_is_compared_with_the_reloaded_configuration(fleet: Fleet) -> None:
    await fleet.start("p", PRODUCTION)
    staging = await fleet.start("s", STAGING)
    fleet.stop("p")
    await staging.look()
    assert contested(staging) == {"treasury"}
    await staging.begin(some(NEW_URL, base_url="https://sandbox.example.com", accounts={"prod": 2}))
    assert contested(staging) == {"prod"}


async def test_a_newly_found_worker_is_compared_with_the_reloaded_configuration(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = await fleet.start("s", STAGING)
    await fleet.start("p", PRODUCTION)
    reloads = iter((some(NEW_URL, base_url="https://sandbox.example.com", accounts={"prod": 2}),))

    async def with_a_reload_in_between(do: Any, *arguments: Any) -> Any:
        answer = await compute(do, *arguments)
        if do is agreement._place and (settings := next(reloads, None)):
            await staging.begin(settings)
        return answer

    monkeypatch.setattr(agreement, "compute", with_a_reload_in_between)
    await staging.look()
    assert contested(staging) == {"prod"}


async def test_a_worker_is_alone_while_all_others_run_its_configuration(fleet: Fleet) -> None:
    one = await fleet.start("a", some())
    assert one.neighbours.is_alone
    await fleet.start("b", some())
    await one.look()
    assert one.neighbours.is_alone
    await fleet.start("c", some(accounts={"treasury": 1, "more": 2}))
    await one.look()
    assert not one.neighbours.is_alone
    fleet.stop("c")
    await one.look()
    assert one.neighbours.is_alone


async def test_a_worker_that_may_not_read_the_others_goes_by_its_own_configuration(
    fleet: Fleet, lines: list[MutableMapping[str, Any]]
) -> None:
    class Forbidden(Configurations):
        async def marks(self, names: Any) -> Any:
            raise ConfigurationRefused("HMGET is not allowed")

    await fleet.start("p", PRODUCTION)
    fleet.configurations = Forbidden(fleet.pipe, fleet.keys)
    staging = await fleet.start("s", STAGING)
    assert is_ours(staging, "ops")
    assert not staging.neighbours.left
    assert lines == []


async def test_an_account_configured_differently_stays_with_the_source_of_its_state(fleet: Fleet) -> None:
    production, staging = await fleet.start("p", PRODUCTION), await fleet.start("s", STAGING)
    await production.look()
    theirs, ours = (fingerprint(one).accounts["treasury"] for one in (PRODUCTION, STAGING))
    assert "treasury" in production.neighbours.contested
    assert production.neighbours.may_poll("treasury", theirs, theirs)
    assert not staging.neighbours.may_poll("treasury", ours, theirs)
    assert staging.neighbours.may_poll("treasury", ours, None), "the worker that commits first"
    assert "prod" not in production.neighbours.contested


async def test_a_worker_of_an_older_version_without_a_note_changes_nothing(
    fleet: Fleet, lines: list[MutableMapping[str, Any]]
) -> None:
    fleet.configuration_by_worker["older"] = ""
    new = await fleet.start("new", some(NEW_URL))
    assert is_ours(new, "ops")
    assert lines == []
    assert not new.neighbours.is_alone, "the older one may poll what it does not know"


async def test_an_embedded_store_belongs_to_one_deployment(fleet: Fleet) -> None:
    await fleet.start("a", some(redis="embedded"))
    fleet.stop("a")
    again = await fleet.start("b", some(NEW_URL, base_url="https://other.example.com", redis="embedded"))
    assert is_ours(again, "ops")


async def test_a_subscription_that_no_other_worker_names_concerns_no_other_worker(fleet: Fleet) -> None:
    await fleet.start("p", PRODUCTION)
    staging = await fleet.start(
        "s", some(NEW_URL, base_url="https://b.example.com", more=a_subscription("more"))
    )
    assert is_ours(staging, "more")
    assert not is_ours(staging, "ops")


async def test_no_secret_is_written_to_redis(fleet: Fleet, redis_client: Redis) -> None:
    await fleet.start("p", PRODUCTION)
    packed = await redis_client.get(fleet.keys.configuration(fingerprint(PRODUCTION).digest))
    assert isinstance(packed, bytes)
    text = f"{zlib.decompress(packed)!r} {await redis_client.hgetall(fleet.keys.marks())}"
    for secret in ("hook-token-7f", "old.example.com", "api.example.com", SECRET[6:], '"key"'):
        assert secret not in text


async def test_an_unreadable_configuration_is_ignored(fleet: Fleet, redis_client: Redis) -> None:
    digest = fingerprint(PRODUCTION).digest
    fleet.configuration_by_worker["p"] = digest
    for damage in (b"", b"garbage", zlib.compress(b"[]"), zlib.compress(b'{"providers": 1}')):
        await redis_client.set(fleet.keys.configuration(digest), damage)
        assert is_ours(await fleet.start("s", STAGING), "ops")


async def test_keys_of_another_type_block_nothing(fleet: Fleet, redis_client: Redis) -> None:
    digest = fingerprint(PRODUCTION).digest
    fleet.configuration_by_worker["p"] = digest
    await redis_client.set(fleet.keys.marks(), "damaged")
    await redis_client.rpush(fleet.keys.configuration(digest), "damaged")
    assert is_ours(await fleet.start("s", STAGING), "ops")
    assert await redis_client.hlen(fleet.keys.marks()) == 1


def test_a_fingerprint_omits_settings_that_may_differ_within_a_deployment() -> None:
    one = fingerprint(PRODUCTION)
    other = PRODUCTION.model_copy(
        update={
            "provider_by_name": {
                "loopring": PRODUCTION.provider_by_name["loopring"].model_copy(
                    update={"api_key": SecretStr("rotated"), "requests_per_second": 1.0}
                )
            },
            "subscription_by_name": {"ops": a_subscription(url=OLD_URL, max_in_flight=3)},
        }
    )
    assert fingerprint(other).digest == one.digest
    assert fingerprint(some(NEW_URL)).subscriptions != one.subscriptions


def test_equal_urls_under_two_names_have_different_digests() -> None:
    digests = fingerprint(some(more=a_subscription("more", url=OLD_URL))).subscriptions
    assert len({*digests.values()}) == 2
    assert a_provider().name  # the other kinds have a fingerprint, too


def test_the_destination_of_a_message_is_more_than_its_url() -> None:
    def digest(**fields: Any) -> str:
        settings = a_subscription(url="https://api.telegram.org/bot1:x/sendMessage", **fields)
        return fingerprint(some(ops=settings)).subscriptions["ops"]

    telegram: Any = {"format": "telegram"}
    pager: Any = {"format": "pagerduty", "routing_key": SecretStr("a" * 32)}
    digests = {
        digest(),
        digest(**telegram, chat="-1"),
        digest(**telegram, chat="-2"),
        digest(**pager),
        digest(**{**pager, "routing_key": SecretStr("b" * 32)}),
    }
    assert len(digests) == 5
    assert digest(**telegram, chat="-1", template="{amount}") in digests


def test_deployments_are_distinguished_by_providers_and_accounts() -> None:
    here = fingerprint(PRODUCTION)
    assert here.is_same_place(fingerprint(some(NEW_URL)))
    assert not here.is_same_place(fingerprint(STAGING))
    assert not here.is_same_place(fingerprint(some(accounts={"stranger": 9})))
    assert Fingerprint({}, {}, {}).is_same_place(Fingerprint({}, {}, {}))


async def test_a_present_worker_is_found_while_another_configuration_is_read(
    redis_client: Redis, namespace: str
) -> None:
    """Else a reload at that moment would take over what is the other one's."""
    fleet, read = Fleet(redis_client, namespace), asyncio.Event()

    class Slow(Configurations):
        async def read(self, digest: str) -> Fingerprint | None:
            await read.wait()
            return await super().read(digest)

    for worker in ("c", "b"):
        await fleet.start(worker, some(OLD_URL))
    present = cast(Present, _Present(fleet, "a"))
    found = agreement.Others(present, Slow(fleet.pipe, fleet.keys), now_ms=lambda: int(1000 * fleet.now_s))
    read.set()
    await found.look()
    read.clear()
    await fleet.start("c", some(NEW_URL))
    looking = asyncio.create_task(found.look())
    for _ in range(20):
        await asyncio.sleep(0)
    [url] = fingerprint(some(OLD_URL)).subscriptions.values()
    assert {one.worker for one in found.holders("ops", url) if one.is_there} == {"b", "c"}
    read.set()
    await looking
    assert not found.is_alone
