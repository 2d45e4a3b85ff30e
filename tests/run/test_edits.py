"""An edit is checked like a file, written once, refused if another came between, and audited."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from threading import current_thread, main_thread
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import SECRET, a_subscription, an_account
from tests.support.stores import a_store
from watcher.config import bodies
from watcher.config.bodies import BodyRefused
from watcher.config.sections import Providers, Source
from watcher.delivery.signing import new_ed25519, new_secret
from watcher.encryption import Keyring, new_key
from watcher.journal.interest import Interest
from watcher.providers.loopring import LoopringSettings
from watcher.receive import check_secrets
from watcher.run import edits
from watcher.run.edits import OVERLAP_MS, Editor, EditRefused
from watcher.settings import Settings
from watcher.store.directory import Directory, Kind, Record, Write
from watcher.store.keys import shard_of

LOOPRING = LoopringSettings(name="loopring", kind="loopring", api_key="k")
ACCOUNT = {"name": "alice", "provider": "loopring", "account_id": 1}
OPS = {"name": "ops", "url": "https://ops.example.com/in?t=1", "accounts": ["alice"], "max_in_flight": 3}
KEY = new_key()


class InForce:
    """The configuration in force, of which the directory's part is read anew after every edit."""

    def __init__(self, directory: Directory, keyring: Keyring) -> None:
        self.directory, self.keyring = directory, keyring
        self.file: Mapping[Kind, set[str]] = {"account": {"treasury"}, "subscription": {"desk"}}
        self.settings = Settings(
            provider_by_name={"loopring": LOOPRING}, account_by_name={}, subscription_by_name={}
        )
        self.interest = Interest({})
        self.providers = Providers.of({"loopring": LOOPRING})
        self.names: dict[Source, str] = {("loopring", "accountId 9"): "treasury"}
        self.followed = 0
        self.lost = list[Write]()
        self.leaving, self.forgotten = list[str](), list[str]()

    def defines(self, kind: Kind, name: str) -> bool:
        return name in self.file[kind]

    def holder(self, source: Source) -> str | None:
        return self.names.get(source)

    def leave(self, name: str) -> None:
        self.leaving.append(name)

    async def forget(self, name: str) -> None:
        self.forgotten.append(name)

    async def follow_now(self) -> None:
        self.followed += 1
        while self.lost:
            await self.directory.put(self.lost.pop())


class Place:
    def __init__(self, client: Redis, namespace: str) -> None:
        store = a_store(client, namespace)
        self.pipe, self.keys = store.pipe, store.keys
        self.directory = Directory(store.pipe, store.keys)
        self.keyring = Keyring([KEY], namespace)
        self.in_force = InForce(self.directory, self.keyring)
        self.now_ms = 1_000_000
        self.editor = Editor(self.directory, self.keyring, self.in_force, now_ms=lambda: self.now_ms)

    async def record(self, kind: Kind = "subscription", name: str = "ops") -> Record:
        record = await self.directory.get(kind, name)
        assert record
        return record

    async def content(self, kind: Kind = "subscription", name: str = "ops") -> dict[str, Any]:
        record = await self.record(kind, name)
        return self.keyring.decrypt(kind, name, record.plain, record.encrypted)

    async def put(self, **changes: Any) -> edits.Edited:
        return await self.editor.put_subscription({**OPS, **changes}, by="operator")


@pytest.fixture
def place(redis_client: Redis, namespace: str) -> Place:
    return Place(redis_client, namespace)


@contextmanager
def refused(why: str) -> Iterator[None]:
    with pytest.raises(EditRefused) as caught:
        yield
    assert caught.value.why == why


async def test_writing_the_same_account_again_changes_nothing(place: Place) -> None:
    made = await place.editor.put_account(dict(ACCOUNT), by="operator")
    assert made.change == "created"
    record = await place.record("account", "alice")
    assert (record.plain, record.edited) == ({"provider": "loopring"}, made.version)
    assert (await place.content("account", "alice"))["settings"] == {"account_id": 1}
    again = await place.editor.put_account(dict(ACCOUNT), by="operator")
    assert (again.change, again.version) == ("unchanged", made.version)
    assert await place.record("account", "alice") == record
    changed = await place.editor.put_account({**ACCOUNT, "interval": "1m"}, by="operator")
    assert changed.change == "changed"
    assert changed.version > made.version
    assert place.in_force.followed == 2


async def test_a_new_subscription_gets_a_secret_and_a_token_shown_once(place: Place) -> None:
    made = await place.put()
    (secret,) = made.secrets
    check_secrets([secret])
    assert made.token
    content = await place.content()
    assert content["secrets"] == [{"secret": secret, "until_ms": None}]
    assert content["tokens"] == [{"hash": sha256(made.token.encode()).hexdigest(), "until_ms": None}]
    assert content["settings"] == {"url": OPS["url"], "max_in_flight": 3}
    assert (await place.record()).plain == {"accounts": ["alice"]}
    again = await place.put()
    assert (again.change, again.secrets, again.token) == ("unchanged", (), None)
    changed = await place.put(max_in_flight=4)
    assert (changed.change, changed.secrets, changed.token) == ("changed", (), None)
    after = await place.content()
    assert (after["secrets"], after["tokens"]) == (content["secrets"], content["tokens"])


async def test_given_secrets_are_used_and_never_shown(place: Place) -> None:
    made = await place.put(secrets=[SECRET])
    assert (made.secrets, bool(made.token)) == ((), True)
    assert (await place.put(secrets=[SECRET])).change == "unchanged"
    assert (await place.put()).change == "unchanged", "a client that leaves them out keeps them"
    other = new_secret()
    assert (await place.put(secrets=[other, SECRET])).change == "changed"
    assert [one["secret"] for one in (await place.content())["secrets"]] == [other, SECRET]


async def test_a_message_for_people_needs_no_secret(place: Place) -> None:
    made = await place.put(format="slack")
    assert (made.secrets, bool(made.token)) == ((), True)
    assert (await place.content())["secrets"] == []
    assert (await place.record()).plain == {"accounts": ["alice"], "format": "slack"}
    with refused("read_only"):
        await place.editor.renew_secret("ops", by="operator")


async def test_a_changed_host_is_unverified_and_a_changed_path_is_not(place: Place) -> None:
    await place.put()
    assert (await place.content())["verified"] is None
    assert (await place.content())["unverified_since_ms"] == 1_000_000
    before = await place.record()
    assert await place.editor.note_verified("ops", "https://OPS.example.com/in?t=1", by="verification")
    assert not await place.editor.note_verified("ops", str(OPS["url"]), by="verification"), "it is already"
    after = await place.record()
    assert (after.edited, after.version > before.version) == (before.edited, True)
    assert (await place.content())["verified"] == "https://ops.example.com:443"
    await place.put(url="https://ops.example.com/other")
    assert (await place.content())["verified"]
    place.now_ms += 5
    await place.put(url="https://ops.example.com:8443/other")
    assert (await place.content())["verified"] is None
    assert (await place.content())["unverified_since_ms"] == 1_000_005
    assert not await place.editor.note_verified("ops", str(OPS["url"]), by="verification"), (
        "of the URL before"
    )


async def test_the_old_secret_keeps_signing_for_a_day_beside_the_new_one(place: Place) -> None:
    first = await place.put()
    second = await place.editor.renew_secret("ops", by="operator")
    assert second.change == "secret"
    assert (await place.record()).edited == first.version, "a client with its ETag may go on editing"
    (new, old) = (await place.content())["secrets"]
    assert new == {"secret": second.secrets[0], "until_ms": None}
    assert old == {"secret": first.secrets[0], "until_ms": 1_000_000 + OVERLAP_MS}
    assert (await place.put()).change == "unchanged"
    place.now_ms += OVERLAP_MS
    third = await place.editor.renew_secret("ops", by="operator")
    kept = [one["secret"] for one in (await place.content())["secrets"]]
    assert kept == [third.secrets[0], second.secrets[0]], "the first one is over"
    for _ in range(12):
        await place.editor.renew_secret("ops", by="operator")
    assert len((await place.content())["secrets"]) == 10


async def test_a_new_pair_of_keys_shows_its_public_part_alone(place: Place) -> None:
    await place.put(secrets=[new_ed25519()])
    renewed = await place.editor.renew_secret("ops", by="operator")
    assert renewed.secrets[0].startswith("whpk_")
    assert (await place.content())["secrets"][0]["secret"].startswith("whsk_")


async def test_the_old_token_is_valid_for_a_day_beside_the_new_one(place: Place) -> None:
    first = await place.put()
    second = await place.editor.renew_token("ops", by="operator")
    assert second.token
    assert second.token != first.token
    new, old = (await place.content())["tokens"]
    assert new == {"hash": sha256(second.token.encode()).hexdigest(), "until_ms": None}
    assert old["until_ms"] == 1_000_000 + OVERLAP_MS


async def test_redis_holds_only_names_and_filters_in_plain_text(place: Place) -> None:
    made = await place.put(headers={"x-key": "canary-header"}, url="https://canary.example.com/canary")
    await place.editor.put_account({**ACCOUNT, "account_id": 424242}, by="canary-operator")
    text = b""
    for name in ("ops", "alice"):
        shard = shard_of(name)
        for key in (place.keys.subscription_records(shard), place.keys.account_records(shard)):
            text += b" ".join(await place.pipe.command("HGETALL", key))
        text += str(await place.pipe.command("XRANGE", place.keys.changes(shard), "-", "+")).encode()
    assert b"alice" in text
    for hidden in (b"canary", b"424242", made.secrets[0].encode(), str(made.token).encode()):
        assert hidden not in text


async def test_what_the_file_defines_is_read_only(place: Place) -> None:
    with refused("read_only"):
        await place.editor.put_account({**ACCOUNT, "name": "treasury"}, by="operator")
    with refused("read_only"):
        await place.put(name="desk")
    with refused("read_only"):
        await place.editor.delete("subscription", "desk", by="operator")
    with refused("read_only"):
        await place.editor.renew_token("desk", by="operator")


async def test_an_edit_of_another_version_than_the_current_one_is_refused(place: Place) -> None:
    with refused("precondition"):
        await place.editor.put_account(dict(ACCOUNT), by="operator", match=lambda found: found == 1)
    made = await place.editor.put_account(dict(ACCOUNT), by="operator", match=lambda found: found is None)
    with refused("precondition"):
        await place.editor.put_account(dict(ACCOUNT), by="operator", match=lambda found: found is None)
    with refused("precondition"):
        await place.editor.delete("account", "alice", by="operator", match=lambda found: found == 1)
    await place.editor.delete("account", "alice", by="operator", match=lambda found: found == made.version)
    with refused("missing"):
        await place.editor.delete("account", "alice", by="operator")


async def test_a_record_that_redis_just_lost_can_be_deleted(place: Place) -> None:
    await place.put()
    lost = await place.record()
    await place.directory.delete("subscription", "ops")
    place.in_force.lost = [Write("subscription", "ops", lost.plain, lost.encrypted)]
    await place.editor.delete("subscription", "ops", by="operator")
    assert await place.directory.get("subscription", "ops") is None


async def test_concurrent_edits_are_applied_in_turn(place: Place) -> None:
    await place.put()
    await asyncio.gather(*(place.editor.renew_token("ops", by="operator") for _ in range(4)))
    assert len((await place.content())["tokens"]) == 5, "no edit is lost"


async def test_if_match_never_overwrites_a_newer_edit(place: Place) -> None:
    made = await place.put()

    async def put(number: int) -> str:
        try:
            body = {**OPS, "max_in_flight": number}
            return (
                await place.editor.put_subscription(
                    body, by="operator", match=lambda found: found == made.version
                )
            ).change
        except EditRefused as one:
            return one.why

    found = await asyncio.gather(*(put(number) for number in range(10, 18)))
    assert sorted(found) == ["changed", *["precondition"] * 7]


async def test_all_findings_of_a_body_come_at_once_also_those_about_other_records(place: Place) -> None:
    with pytest.raises(BodyRefused) as caught:
        await place.put(url="http://127.0.0.1/", alerts_to="nobody", colour=1)
    assert {found.key for found in caught.value.findings} == {"/url", "/alerts_to", "/colour"}
    with pytest.raises(BodyRefused) as caught:
        await place.editor.put_account({**ACCOUNT, "account_id": 9, "interval": "0s"}, by="operator")
    assert {found.key for found in caught.value.findings} == {"", "/interval"}


async def test_checking_a_large_body_does_not_block_other_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_main = list[bool]()

    def subscription(*arguments: Any) -> Any:
        is_main.append(current_thread() is main_thread())
        return bodies.subscription_of(*arguments)

    def account(*arguments: Any) -> Any:
        is_main.append(current_thread() is main_thread())
        return bodies.account_of(*arguments)

    monkeypatch.setattr(edits, "subscription_of", subscription)
    monkeypatch.setattr(edits, "account_of", account)
    await place.put()
    await place.put(accounts=[f"a{number}" for number in range(500)])
    with pytest.raises(BodyRefused):
        await place.put(events=["deposit.cleard"] * 500)
    await place.editor.put_account(dict(ACCOUNT), by="operator")
    with pytest.raises(BodyRefused):
        await place.editor.put_account({**ACCOUNT, **dict.fromkeys(map(str, range(500)))}, by="operator")
    assert is_main == [True, False, False, True, False]


async def test_each_account_of_a_batch_is_written_or_refused_by_itself(place: Place) -> None:
    tables = [
        {"name": f"a{number}", "provider": "loopring", "account_id": 100 + number} for number in range(200)
    ]
    tables[3]["account_id"] = "x"
    tables[5]["name"] = "a4"
    tables[7]["account_id"] = 106
    tables[8]["name"] = "treasury"
    tables[9].pop("name")
    found = await place.editor.put_accounts(tables, by="operator")
    failed = {number: one for number, one in enumerate(found) if isinstance(one, Exception)}
    assert {number: type(one) for number, one in failed.items()} == {
        3: BodyRefused,
        5: BodyRefused,
        7: BodyRefused,
        8: EditRefused,
        9: BodyRefused,
    }
    assert "item 5" in str(failed[5])
    assert "as a6" in str(failed[7])
    assert (await place.directory.counts())["account"] == 195
    again = await place.editor.put_accounts(tables, by="operator")
    assert {one.change for one in again if not isinstance(one, Exception)} == {"unchanged"}
    assert place.in_force.followed == 1


async def test_no_account_gets_more_subscriptions_than_one_commit_can_serve(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edits, "MOST_OF_AN_ACCOUNT", 2)
    wants = {
        name: a_subscription(name, accounts=(glob,)) for name, glob in {"one": "al*", "two": "alice"}.items()
    }
    in_force = place.in_force
    in_force.settings = in_force.settings.model_copy(
        update={
            "subscription_by_name": wants,
            "account_by_name": {"alice": an_account("alice")},
        }
    )
    in_force.interest.follow(wants)
    for accounts in (["alice"], ["*"], ["bob", "a*"]):
        with pytest.raises(BodyRefused) as caught:
            await place.put(accounts=accounts)
        (found,) = caught.value.findings
        assert (found.key, "3 are for account alice, 2 at most" in found.text) == ("/accounts", True)
    assert (await place.put(accounts=["bob"])).change == "created"
    assert (await place.put(name="two", accounts=["*"])).change == "created", "it is one of the two already"


async def test_a_full_directory_says_how_much_it_holds(place: Place) -> None:
    place.editor = Editor(
        Directory(place.pipe, place.keys, most={"account": 0, "subscription": 0}),
        place.keyring,
        place.in_force,
        now_ms=lambda: place.now_ms,
    )
    with refused("full"):
        await place.put()
    with refused("full"):
        await place.editor.put_account(dict(ACCOUNT), by="operator")


async def test_a_record_of_another_key_stays_unchanged_until_it_is_deleted(place: Place) -> None:
    await place.put()
    place.editor = Editor(
        place.directory, Keyring([new_key()], "other"), place.in_force, now_ms=lambda: place.now_ms
    )
    with refused("locked"):
        await place.put(max_in_flight=9)
    with refused("locked"):
        await place.editor.renew_secret("ops", by="operator")
    await place.editor.delete("subscription", "ops", by="operator")
    await place.put()


async def test_a_damaged_record_can_be_deleted_and_written_again(place: Place) -> None:
    await place.put()
    key = place.keys.subscription_records(shard_of("ops"))
    await place.pipe.command("HSET", key, "ops", "damaged")
    with refused("locked"):
        await place.put()
    await place.editor.delete("subscription", "ops", by="operator")
    assert (await place.put()).change == "created"


async def test_a_damaged_record_does_not_affect_an_entry_of_the_file(place: Place) -> None:
    key = place.keys.account_records(shard_of("treasury"))
    await place.pipe.command("HSET", key, "treasury", "damaged")
    with refused("read_only"):
        await place.editor.delete("account", "treasury", by="operator")


async def test_every_change_is_logged_with_its_author_and_without_secrets(
    place: Place,
) -> None:
    with capture_logs() as lines:
        made = await place.put(headers={"x-key": "canary-header"})
        await place.put(headers={"x-key": "canary-header"})
        secret = await place.editor.renew_secret("ops", by="operator")
        token = await place.editor.renew_token("ops", by="import")
        await place.editor.delete("subscription", "ops", by="operator")
    assert [(line["event"], line["change"], line["by"]) for line in lines] == [
        ("directory.changed", "created", "operator"),
        ("directory.changed", "secret", "operator"),
        ("directory.changed", "token", "import"),
        ("directory.changed", "deleted", "operator"),
    ]
    assert {(line["kind"], line["name"]) for line in lines} == {("subscription", "ops")}
    for hidden in (*made.secrets, *secret.secrets, made.token, token.token, "canary-header", "?t=1"):
        assert str(hidden) not in str(lines)
