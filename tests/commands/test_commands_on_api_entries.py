"""Commands list, show, remove and export what was made through the API."""

import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.stories import STORY, Books, Ended, Run, Write, a_configuration, ended
from watcher.config.loading import load
from watcher.encryption import Keyring, new_key
from watcher.run.edits import Content
from watcher.store import directory

KEY, OTHER = new_key(), new_key()
SECRET, OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_bGFsYWxhbGFsYWxhbGFsYWxhbGFsYWxhbGFsYQ=="
URL = "https://canary.example.com/in?token=canaryToken"
BOB = {"account_id": 77, "interval": "1m"}
DESK: Content = {
    "settings": {"url": URL, "headers": {"x-key": "canaryHeader ${NOT}"}, "max_in_flight": 3},
    "secrets": [
        {"secret": SECRET, "until_ms": None},
        {"secret": OLD, "until_ms": 4_000_000_000_000},
        {"secret": "whsec_" + "B" * 32, "until_ms": 1},
    ],
    "tokens": [{"hash": "ab" * 32, "until_ms": None}],
    "verified": "https://canary.example.com:443",
    "unverified_since_ms": None,
}
PLAIN = {"accounts": ["bob"], "events": ["deposit.*"], "thresholds": [{"asset": "ETH", "below": "1.50"}]}
SEALED = ("canary", "whsec_", "token=")
"""No output without --secrets may hold one of these."""


class Place:
    """A store that has what the configuration says, and the same again and more from the API."""

    def __init__(self, run: Run, write: Write, path: Path, namespace: str) -> None:
        self.run, self.write, self.path = run, write, path
        self.keyring = Keyring([KEY], namespace)

    def put(self, kind: directory.Kind, name: str, plain: Any, content: Content) -> None:
        one = directory.Write(kind, name, plain, self.keyring.encrypt(kind, name, plain, content))

        async def into(books: Books) -> None:
            await directory.Directory(books.pipe, books.keys).put(one)

        self.write(into)

    def records(self) -> dict[tuple[str, str], tuple[Any, Content]]:
        async def read(books: Books) -> dict[tuple[str, str], tuple[Any, Content]]:
            return {
                (one.kind, one.name): (
                    one.plain,
                    self.keyring.decrypt(one.kind, one.name, one.plain, one.encrypted),
                )
                async for held in directory.Directory(books.pipe, books.keys).read_all()
                for one in held.records
            }

        found: dict[tuple[str, str], tuple[Any, Content]] = self.write(read)
        return found

    def configure(self, change: Callable[[str], str]) -> None:
        self.path.write_text(change(self.path.read_text()))


@pytest.fixture
def place(
    tmp_path: Path, redis_server_url: str, namespace: str, capsys: pytest.CaptureFixture[str], write: Write
) -> Place:
    path = a_configuration(tmp_path, redis_server_url, namespace, "treasury")

    def run(*arguments: object) -> Ended:
        return ended(capsys, *arguments, "--config", path)

    async def lived(books: Books) -> None:
        await books.enroll("treasury")
        await books.live(STORY[:2])

    write(lived)
    place = Place(run, write, path, namespace)
    place.configure(lambda text: f'{text}\n[api]\nsecret_key = "{KEY}"\n')
    place.put("account", "bob", {"provider": "loopring"}, {"settings": BOB})
    place.put("account", "treasury", {"provider": "loopring"}, {"settings": {"account_id": 9}})
    place.put("subscription", "desk", PLAIN, DESK)
    return place


def test_lists_say_whether_each_entry_is_from_the_file_or_the_api(place: Place) -> None:
    assert [line.split() for line in place.run("accounts").lines] == [
        ["account", "provider", "from"],
        ["treasury", "loopring", "file"],
        ["bob", "loopring", "api"],
    ]
    assert place.run("accounts", "list", "--json").objects == [
        {"account": "treasury", "provider": "loopring", "origin": "file"},
        {"account": "bob", "provider": "loopring", "origin": "api"},
    ]
    origins = {line["subscription"]: line["origin"] for line in place.run("subscriptions", "--json").objects}
    assert origins == {"ops": "file", "desk": "api"}
    said = place.run("subscriptions")
    assert "(by the API)" in next(line for line in said.lines if line.startswith("desk"))
    assert not any(one in said.out for one in ("canaryToken", "canaryHeader", "whsec_"))


def test_commands_that_only_need_redis_need_no_key(place: Place) -> None:
    for change in (lambda text: text.partition("[api]")[0], lambda text: text.partition("[providers")[0]):
        place.configure(change)
        status = {line["kind"]: line for line in place.run("status", "--json").objects}
        assert status["accounts"]["accounts"] == 2
        assert place.run("balances", "bob").lines[1].split()[:2] == ["bob", "-"]
        assert place.run("events", "--account", "bob").code == 0
        assert place.run("deliveries", "--subscription", "desk").code == 0
        assert place.run("subscriptions", "pause", "desk").code == 0
        assert place.run("subscriptions", "resume", "desk").code == 0
        assert {"ops", "desk"} == {
            line["subscription"] for line in place.run("subscriptions", "--json").objects
        }


def test_an_entry_is_shown_as_a_section_without_its_secrets(place: Place) -> None:
    shown = place.run("accounts", "show", "bob")
    assert tomllib.loads(shown.out) == {"accounts": [{"name": "bob", "provider": "loopring", **BOB}]}
    assert shown.lines[0] == "# It came through the API."
    said = place.run("accounts", "show", "treasury")
    assert (said.lines[0], "account_id = 0" in said.lines) == (f"# It stands in {place.path}.", True)
    desk = place.run("subscriptions", "show", "desk")
    (table,) = tomllib.loads(desk.out)["subscriptions"]
    assert (table["url"], table["headers"]) == ("https://canary.example.com/***", {"x-key": "***"})
    assert (table["max_in_flight"], table["thresholds"]) == (3, PLAIN["thresholds"])
    assert not any(one in desk.out for one in ("canaryToken", "canaryHeader", "whsec_"))
    (line,) = place.run("subscriptions", "show", "desk", "--json").objects
    assert line == {**table, "origin": "api"}
    unknown = place.run("accounts", "show", "bop")
    assert (unknown.code, "did you mean 'bob'?" in unknown.err) == (2, True)


def test_showing_an_entry_of_the_api_takes_its_key(place: Place) -> None:
    place.configure(lambda text: text.replace(KEY, OTHER))
    done = place.run("subscriptions", "show", "desk")
    assert (done.code, done.out) == (78, "")
    assert "subscription desk: it was encrypted with a key that is not in [api] secret_key" in done.err
    place.configure(lambda text: text.partition("[api]")[0])
    done = place.run("accounts", "show", "bob")
    assert (done.code, "with [api] secret_key" in done.err) == (78, True)


def test_removing_deletes_entries_of_the_api_and_none_of_the_file(place: Place) -> None:
    done = place.run("accounts", "remove", "bob", "--yes")
    assert (done.code, done.out) == (0, "bob: removed\n")
    assert place.run("subscriptions", "remove", "desk", "--yes").out == "desk: removed\n"
    again = place.run("accounts", "remove", "bob", "--yes")
    assert (again.code, "no account of the API is called 'bob'" in again.err) == (2, True)
    shadowed = place.run("accounts", "remove", "treasury", "--yes")
    assert shadowed.out == f"treasury: removed; the one in {place.path} goes on\n"
    of_the_file = place.run("accounts", "remove", "treasury", "--yes")
    stands = f"treasury stands in {place.path}: take it out there, and reload"
    assert (of_the_file.code, stands in of_the_file.err) == (1, True)
    assert place.records() == {}
    assert place.run("balances", "treasury").code == 0

    async def schedules(books: Books) -> set[bytes]:
        shards = range(16)
        keys = [books.keys.polls(shard, "loopring") for shard in shards]
        return {name for key in keys for name in await books.pipe.command("ZRANGE", key, 0, -1)}

    assert place.write(schedules) == {b"treasury"}


def test_without_yes_it_asks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert place.run("accounts", "remove", "bob").code == 1
    assert ("account", "bob") in place.records()


def exported(place: Place, folder: Path, *options: str) -> Ended:
    return place.run("export", "--to", folder, *options)


def test_an_export_without_secrets_names_variables_in_their_place(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = exported(place, folder)
    assert done.code == 0
    assert done.lines == [
        "DESK_URL  url of desk",
        "DESK_SECRET  secrets of desk",
        "DESK_X_KEY  header x-key of desk",
    ]
    said = exported(place, tmp_path / "again", "--json").objects
    assert said[0] == {"variable": "DESK_URL", "stands_for": "url of desk"}
    assert sorted(path.name for path in folder.iterdir()) == ["accounts.jsonl", "subscriptions.toml"]
    text = "".join(path.read_text() for path in folder.iterdir())
    assert not any(one in text for one in SEALED)
    (table,) = tomllib.loads((folder / "subscriptions.toml").read_text())["subscriptions"]
    assert table["secrets"] == ["${DESK_SECRET}"]


def test_exported_files_are_private_and_overwrite_nothing(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    assert exported(place, folder, "--secrets").code == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    before = {path: path.read_bytes() for path in folder.iterdir()}
    again = exported(place, folder)
    assert (again.code, "subscriptions.toml is there already" in again.err) == (1, True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def without_the_api(place: Place, folder: Path) -> str:
    """What deploy/UPGRADE.md says: the exported files beside the configuration, without [api]."""
    own = place.path.read_text().partition("[api]")[0]
    return f'accounts_file = "accounts.jsonl"\n{own}\n{(folder / "subscriptions.toml").read_text()}'


@pytest.mark.parametrize("has_secrets", [True, False])
def test_a_worker_without_the_api_loads_an_export(has_secrets: bool, place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    place.run("accounts", "remove", "treasury", "--yes")
    exported(place, folder, *(["--secrets"] if has_secrets else []))
    (folder / "watcher.toml").write_text(without_the_api(place, folder))
    environ = (
        {} if has_secrets else {"DESK_URL": URL, "DESK_SECRET": SECRET, "DESK_X_KEY": "canaryHeader ${NOT}"}
    )
    settings = load(folder / "watcher.toml", environ).settings
    assert [*settings.account_by_name] == ["treasury", "bob"]
    bob, desk = settings.account_by_name["bob"], settings.subscription_by_name["desk"]
    assert bob.interval.total_seconds() == 60
    assert desk.url.get_secret_value() == URL
    assert desk.headers == {"x-key": "canaryHeader ${NOT}"}, "text of a client, not a variable"
    signing = [secret.get_secret_value() for secret in desk.secrets]
    assert signing == ([SECRET, OLD] if has_secrets else [SECRET]), "no expired token"
    assert desk.thresholds[0].below == "1.5"


def test_a_record_that_cannot_be_decrypted_is_left_out_with_a_warning(place: Place, tmp_path: Path) -> None:
    place.configure(lambda text: text.replace(KEY, OTHER))
    done = exported(place, tmp_path / "out")
    assert (done.code, done.err.count("left out: ")) == (1, 3)
    assert "left out: account bob: it was encrypted with a key" in done.err


def lose_the_store(place: Place) -> None:
    """Lose the entries of the API, as after a loss of Redis that a worker then uses."""

    async def lost(books: Books) -> None:
        for shard in range(16):
            keys = books.keys
            for key in (keys.account_records(shard), keys.subscription_records(shard), keys.changes(shard)):
                await books.damage("DEL", key)

    place.write(lost)


def settled(records: dict[tuple[str, str], tuple[Any, Content]]) -> Any:
    """The lasting part of records: without their author, and what has expired."""
    for _, content in records.values():
        content.pop("audit", None)
        if "secrets" in content:
            content["secrets"] = [one for one in content["secrets"] if one["until_ms"] != 1]
    return records


def test_an_export_with_secrets_brings_a_lost_store_back_as_it_was(place: Place, tmp_path: Path) -> None:
    place.run("accounts", "remove", "treasury", "--yes")
    before = settled(place.records())
    assert exported(place, tmp_path / "out", "--secrets").code == 0
    lose_the_store(place)
    assert place.records() == {}
    files = sorted((tmp_path / "out").iterdir())
    preview = place.run("import", "--dry-run", *files)
    assert (preview.code, preview.out) == (0, "1 account, 1 subscription: all of it can be imported\n")
    assert place.records() == {}
    done = place.run("import", *files)
    assert (done.code, done.err) == (0, "")
    assert [line.split() for line in done.lines] == [["created", "2"], ["changed", "0"], ["unchanged", "0"]]
    assert settled(place.records()) == before
    again = place.run("import", *files)
    assert [line.split() for line in again.lines] == [["created", "0"], ["changed", "0"], ["unchanged", "2"]]
    assert place.run("import", "--json", "--dry-run", *files).objects == [{"accounts": 1, "subscriptions": 1}]
    counts = {"created": 0, "changed": 0, "unchanged": 2, "left_out": 0}
    assert place.run("import", "--json", *files).objects == [counts]


def test_without_state_a_subscription_waits_for_a_ping_and_gets_no_token(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(place, tmp_path / "out")
    lose_the_store(place)
    monkeypatch.setenv("DESK_URL", URL)
    monkeypatch.setenv("DESK_SECRET", f"{OLD}\n{SECRET}\n")
    monkeypatch.setenv("DESK_X_KEY", "another")
    done = place.run("import", tmp_path / "out" / "subscriptions.toml")
    assert (done.code, "1 subscription without a token" in done.err) == (0, True)
    _, content = place.records()["subscription", "desk"]
    assert (content["verified"], content["tokens"]) == (None, [])
    assert [one["secret"] for one in content["secrets"]] == [OLD, SECRET]
    assert content["settings"]["headers"] == {"x-key": "another"}


def test_an_import_with_mistakes_lists_them_all_and_writes_nothing(place: Place, tmp_path: Path) -> None:
    before = place.records()
    accounts, sections, state = (tmp_path / name for name in ("a.jsonl", "s.toml", "state.jsonl"))
    accounts.write_text(
        '{"name": "carol", "provider": "loopring", "account_id": 78}\n'
        '{"name": "dave", "provider": "loopring", "account_id": 77}\n'
        '{"name": "erin", "provider": "loopringg", "account_id": 79}\n'
        '{"name": "treasury", "provider": "loopring", "account_id": 80}\n'
        '{"name": "carol", "provider": "loopring", "account_id": 81, "account_id": 82}\n'
    )
    sections.write_text(
        '[[subscriptions]]\nname = "a"\nurl = "http://10.0.0.1/"\nsecrets = ["whsec_short"]\n'
        '[[subscriptions]]\nname = "b"\nurl = "https://b.example.com/"\nalerts_to = "c"\n'
        f'secrets = ["{SECRET}"]\nheaders = {{ k = "${{UNSET}}" }}\n'
    )
    state.write_text(
        '{"subscription": "b", "secrets_until_ms": [null, null], "tokens": [{"hash": "x", "until_ms": null}],'
        ' "verified": null, "unverified_since_ms": null}\n{"subscription": "zz"}\n'
    )
    done = place.run("import", accounts, sections, state)
    assert (done.code, done.out) == (78, "")
    for words in (
        f"{accounts}:2: is the same account at the same provider as bob",
        f"{accounts}:3: provider: ",
        f"{accounts}:4: name: is defined in the configuration file, which wins",
        f"{accounts}:5: account_id: is given twice",
        f"{sections}:3: subscriptions[0].url: ",
        f"{sections}:4: subscriptions[0].secrets[0]: ",
        f"{sections}:8: subscriptions[1].alerts_to: no [[subscriptions]] of this name",
        f"{sections}:10: subscriptions[1].headers.k: ",
        f"{state}:1: tokens[0].hash: ",
        f"{state}:2: subscription: none of the [[subscriptions]] has this name",
    ):
        assert words in done.err, done.err
    assert done.err.endswith("nothing was imported\n")
    assert SECRET not in done.err
    assert place.records() == before


def test_subscriptions_that_alert_each_other_or_existing_ones_are_imported(
    place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        "".join(
            f'[[subscriptions]]\nname = "{name}"\nurl = "https://{name}.example.com/"\n'
            f'alerts_to = "{other}"\nsecrets = ["{SECRET}"]\n'
            for name, other in (("a", "b"), ("b", "a"), ("c", "desk"), ("d", "ops"))
        )
    )
    assert place.run("import", path).lines[0].split() == ["created", "4"]


def test_import_takes_a_key(place: Place, tmp_path: Path) -> None:
    place.configure(lambda text: text.partition("[api]")[0])
    absent = place.run("import", tmp_path / "a.jsonl")
    assert (absent.code, "a.jsonl' does not exist" in absent.err) == (2, True)
    (tmp_path / "a.jsonl").write_text("")
    done = place.run("import", tmp_path / "a.jsonl")
    assert (done.code, "with [api] secret_key" in done.err) == (78, True)


def test_status_counts_entries_of_the_api_and_those_that_need_attention(place: Place) -> None:
    def said() -> tuple[dict[str, object], str]:
        (line,) = (line for line in place.run("status", "--json").objects if line["kind"] == "directory")
        return line, place.run("status").out.partition("\nAPI")[2]

    place.put(
        "subscription",
        "new",
        {},
        {**DESK, "settings": {"url": URL}, "verified": None, "unverified_since_ms": 1},
    )
    line, text = said()
    counts = {"accounts": 2, "subscriptions": 2, "shadowed": 1, "unverified": 1, "locked": 0}
    rest = {"unfit": 0, "older_key": 0, "shadowed_names": ["account treasury"]}
    assert line == {"kind": "directory", **counts, **rest}
    assert "    account treasury\n" in f"{text}\n"
    assert "2 accounts and 2 subscriptions came through it" in text
    assert "1 unverified: their events wait" in text
    assert "1 shadowed: the configuration has the same names" in text
    (new,) = (one for one in place.run("subscriptions", "--json").objects if one["subscription"] == "new")
    assert (new["record"], new["unverified_since"]) == ("unverified", "1970-01-01T00:00:00.001Z")
    assert new["url"] == "https://canary.example.com"
    assert "unverified since 1970" in (listed := place.run("subscriptions").out)
    assert "answered a ping; nothing waits; what to do: `watcher ping new` shows what it answers" in listed
    assert "new: unverified: nothing waits" in (status := place.run("status").out)
    assert " of 3 healthy" in status.partition("\nsubscriptions")[2]
    place.configure(lambda text: text.replace(f'"{KEY}"', f'["{OTHER}", "{KEY}"]'))
    assert said()[0]["older_key"] == 4
    place.configure(lambda text: text.replace(f'["{OTHER}", "{KEY}"]', f'"{OTHER}"'))
    assert (said()[0]["locked"], said()[0]["unverified"]) == (3, 0), "an account, and both subscriptions"
    assert "its record of the API is locked: it was encrypted with a key" in place.run("subscriptions").out
    place.configure(lambda text: text.partition("[api]")[0])
    assert said()[0]["locked"] is None


@contextmanager
def a_receiver() -> Iterator[tuple[str, list[bytes]]]:
    """Takes whatever is POSTed; gives its URL, and what came."""
    taken: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not in the output of a test."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", taken
        server.shutdown()
        thread.join()


def test_ping_and_resend_reach_a_subscription_of_the_api(place: Place) -> None:
    with a_receiver() as (url, taken):
        allowed = '[egress]\nallow = ["127.0.0.0/8"]\nallow_http = true\n'
        place.configure(lambda text: f"{text}{allowed}")
        place.put("subscription", "here", {}, {**DESK, "settings": {"url": url}})
        done = place.run("ping", "here")
        assert (done.code, len(taken)) == (0, 1), done
        (said,) = place.run("ping", "here", "--json").objects
        assert (said["subscription"], said["ok"], said["todo"]) == ("here", True, None)
    (said,) = (gone := place.run("ping", "here", "--json")).objects
    assert (gone.code, said["ok"], said["status"]) == (1, False, None)
    assert said["error"].startswith("cannot connect")
    assert "check whether the receiver listens" in said["todo"]
    done = place.run("resend", "--since", "2d", "--subscription", "here", "--dry-run")
    assert (done.code, "here: " in done.out) == (0, True)
    assert "no subscription is called 'her'; did you mean 'here'?" in place.run("ping", "her").err
    place.configure(lambda text: text.replace(KEY, OTHER))
    for command in (("ping", "here"), ("resend", "--dead", "--subscription", "here")):
        done = place.run(*command)
        assert done.code == 78
        assert "subscription here came through the API: it was encrypted with a key" in done.err
