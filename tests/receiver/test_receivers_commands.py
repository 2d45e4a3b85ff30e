"""The commands of the receiver's side: `secret`, `verify` and `listen`."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests.support.json_fields import assert_documented
from tests.support.signed_webhooks import OTHER_SECRET, PRIVATE, SECRET, Webhook, a_change, an_event, signed
from watcher.commands import listen, secret, verify
from watcher.delivery.signing import Signer, public_key
from watcher.encryption import Keyring
from watcher.journal.notices import sample
from watcher.receiver import Receipt


def run(command: click.Command, *arguments: str, body: bytes = b"", **environment: str) -> Result:
    return CliRunner().invoke(command, arguments, input=body, env=environment)


# secret


def test_a_new_secret_is_alone_on_stdout() -> None:
    result = run(secret.command, "new")
    Signer([result.stdout.strip()])
    assert result.stdout.startswith("whsec_")
    assert result.stderr == ""


def test_a_new_key_pair_has_its_private_part_on_stdout_and_its_public_part_on_stderr() -> None:
    result = run(secret.command, "new", "--ed25519")
    assert result.stdout.startswith("whsk_")
    assert result.stderr.strip().endswith(public_key(result.stdout.strip()))


def test_a_new_key_for_the_api_is_alone_on_stdout() -> None:
    result = run(secret.command, "new", "--key")
    Keyring([result.stdout.strip()], "watcher")
    assert result.stderr == ""
    refused = run(secret.command, "new", "--key", "--ed25519")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_the_public_key_is_shown_again() -> None:
    result = run(secret.command, "public", "--secret-env", "KEY", KEY=PRIVATE)
    assert result.stdout.strip() == public_key(PRIVATE)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give --secret-env or --secret-file"),
        (["--secret-env", "UNSET_NAME"], "no UNSET_NAME and no UNSET_NAME_FILE"),
        (["--secret-env", "SHARED"], "only a whsk_"),
    ],
)
def test_a_secret_without_a_public_key_is_a_usage_error(arguments: list[str], why: str) -> None:
    result = run(secret.command, "public", *arguments, SHARED=SECRET)
    assert result.exit_code == 2
    assert why in result.stderr
    assert SECRET not in result.output


# verify


def verified(webhook: Webhook, *arguments: str, secret: str = SECRET) -> Result:
    headers = [part for name, value in webhook.headers.items() for part in ("-H", f"{name}: {value}")]
    return run(verify.command, "--secret-env", "S", *headers, *arguments, body=webhook.body, S=secret)


def fresh(body: bytes | dict[str, Any] | None = None, *secrets: str) -> Webhook:
    return signed(body, *secrets, at=int(time.time()))


def verdicts(result: Result) -> list[str]:
    return [line.split()[0] for line in result.stdout.splitlines()[:7]]


def test_a_genuine_webhook_passes_every_step() -> None:
    result = verified(fresh())
    assert result.exit_code == 0
    assert verdicts(result) == ["ok"] * 7
    assert result.stdout.endswith("genuine\n")


@pytest.mark.parametrize(
    ("webhook", "passed", "why"),
    [
        (fresh().but(signature=None), 0, "there is no webhook-signature"),
        (fresh().but(id="evt.1"), 1, "malformed id"),
        (fresh().but(timestamp="now"), 2, "malformed timestamp"),
        (signed(at=1_614_265_330), 3, "needs --any-age"),
        (signed(at=9_999_999_999), 3, "too new"),
        (fresh().but(signature="sha256=00"), 4, "malformed signature"),
        (fresh(None, OTHER_SECRET), 5, "the secret is another one"),
        (fresh(b"text"), 6, "body not JSON"),
    ],
)
def test_the_failing_step_is_shown_and_nothing_after_it(webhook: Webhook, passed: int, why: str) -> None:
    result = verified(webhook)
    assert result.exit_code == 1
    assert verdicts(result) == ["ok"] * passed + ["FAILED"] + ["-"] * (6 - passed)
    assert why in result.stdout


@pytest.mark.parametrize(
    ("sent", "captured", "hint"),
    [
        (b'{"a": 1}', b'{"a": 1}\n', "without the line break at the end it matches"),
        (b'{"a": 1}\n', b'{"a": 1}', "with a line break at the end it matches"),
        (b'{"a":"\xc3\xa4"}', b'{ "a": "\\u00e4" }', "written as JSON without spaces it matches"),
        (b'{"a": 1}', b'{"a": 2}', "the secret is another one, or the body was changed"),
        (b'{"a": 1}', b"[" * 100_000, "the secret is another one, or the body was changed"),
    ],
)
def test_changed_bytes_are_recognised(sent: bytes, captured: bytes, hint: str) -> None:
    assert hint in verified(fresh(sent)._replace(body=captured)).stdout


def test_an_old_capture_can_be_verified() -> None:
    assert verified(signed(at=1_614_265_330), "--any-age").exit_code == 0
    assert verified(signed(None, OTHER_SECRET, at=1_614_265_330), "--any-age").exit_code == 1


def test_a_private_key_verifies_like_its_public_one() -> None:
    assert verified(fresh(None, PRIVATE), secret=PRIVATE).exit_code == 0
    assert verified(fresh(None, PRIVATE), secret=public_key(PRIVATE)).exit_code == 0


def test_several_secrets_in_one_variable_are_all_tried() -> None:
    assert verified(fresh(), secret=f"{OTHER_SECRET} {SECRET}").exit_code == 0


def as_lines(headers: dict[str, str]) -> str:
    return "POST /hooks HTTP/1.1\r\n" + "".join(f"{name.title()}: {headers[name]}\r\n" for name in headers)


@pytest.mark.parametrize("written", [json.dumps, as_lines])
def test_headers_body_and_secret_may_be_files(written: Any, tmp_path: Path) -> None:
    webhook = fresh()
    (tmp_path / "headers").write_text(written(webhook.headers))
    (tmp_path / "body").write_bytes(webhook.body)
    (tmp_path / "secret").write_text(SECRET + "\n")
    files = ["--headers", str(tmp_path / "headers"), "--secret-file", str(tmp_path / "secret")]
    assert run(verify.command, *files, str(tmp_path / "body")).exit_code == 0


def test_the_verdict_as_json_is_one_object() -> None:
    assert json.loads(verified(fresh(), "--json").stdout) == {"verified": True}
    refused = json.loads(verified(fresh(None, OTHER_SECRET), "--json").stdout)
    assert (refused["verified"], refused["step"]) == (False, "no signature matches")
    assert_documented(["verify", "--json"], json.dumps(refused))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give --secret-env or --secret-file"),
        (["--secret-env", "EMPTY"], "holds nothing but white space"),
        (["--secret-env", "BAD"], "not base64"),
        (["--secret-file", "/dev/null"], "is empty"),
        (["--secret-env", "GOOD", "-H", "no colon \x1b[31m"], r"no colon \x1b[31m"),
    ],
)
def test_verify_without_a_needed_option_is_a_usage_error(arguments: list[str], why: str) -> None:
    result = run(verify.command, *arguments, GOOD=SECRET, EMPTY=" ", BAD="whsec_canary!")
    assert result.exit_code == 2
    assert why in result.stderr
    assert "canary" not in result.output


def test_a_headers_file_with_broken_json_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("{")
    assert verified(fresh(), "--headers", str(tmp_path / "headers")).exit_code == 2


# listen

NO_URLS = (
    *("", "https://", "http:///hook", "http://:80/", "http://[::1", "http://host:99999/", "http://host:0/"),
    *("http://exa mple/", "http://host/\n", "//host/", "mailto:me@example.com", "http", "file:///etc/passwd"),
)


class Listening:
    """`watcher listen` in a process of its own, at a free port."""

    def __init__(self, *arguments: str) -> None:
        self.shown: list[str] = []
        code = "from watcher.commands.listen import command; command()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "--port", "0", "--secret-env", "S", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"S": SECRET},
            text=True,
        )
        assert self._process.stderr
        while not (address := re.search(r"listening at (http://\S+/)", "".join(self.shown))):
            line = self._process.stderr.readline()
            assert line, self.shown
            self.shown.append(line)
        self.url = address[1]

    def post(self, webhook: Webhook) -> int:
        request = urllib.request.Request(self.url, webhook.body, webhook.headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def end(self, how: signal.Signals) -> tuple[int, list[str], str]:
        """Exit code, lines on stdout, and what was on stderr after the first line."""
        self._process.send_signal(how)
        stdout, stderr = self._process.communicate(timeout=10)
        return self._process.returncode, stdout.splitlines(), stderr

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_listen_shows_each_attempt_and_ends_with_a_summary(how: signal.Signals) -> None:
    with contextlib.closing(Listening("--fail", "503:1")) as listening:
        hostile = an_event(
            type="deposit.cleared\x1b[31m\n\u202e", data=a_change(amount="1" * 78 + "." + "1" * 78)
        )
        statuses = [
            listening.post(each) for each in (fresh(hostile), fresh(hostile), fresh(None, OTHER_SECRET))
        ]
        code, lines, summary = listening.end(how)
    assert statuses == [503, 200, 400]
    assert code == 0
    first, second, third = lines
    assert r"deposit.cleared\x1b[31m\n\u202e" in first
    assert "answered 503" in first
    assert all(text in second for text in ("treasury", "LRC", "total +12.5, pending_deposit -12.5", "#1"))
    assert f" {'1' * 78}.{'1' * 78} " in second, "an amount is never cut short"
    assert second.endswith("verified; attempt 2 here")
    assert "refused: no signature matches" in third
    assert summary.startswith("took 1 event; 0 repeats, 0 gaps")
    assert "1 not answered with 2xx, 1 refused" in summary


def test_an_empty_host_means_loopback() -> None:
    with contextlib.closing(Listening("--host", "")) as listening:
        assert listening.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_listen_at_an_invalid_host_is_no_bug(host: str) -> None:
    done = CliRunner().invoke(listen.command, ["--host", host, "--port", "0"])
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert f"cannot listen at {host}:0: not a host name" in done.stderr


def test_a_port_that_is_taken_is_reported_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(listen.command, ["--port", str(port)])
    assert done.exit_code == 1
    assert done.stderr.endswith(
        f"Error: cannot listen at 127.0.0.1:{port}: address already in use; choose another port\n"
    )


@pytest.mark.parametrize(
    ("type_", "says"),
    [
        ("subscription.paused", "sample is paused: it answered 410"),
        ("threshold.crossed", "total is below 1000"),
        ("account.stale", "no answer within 10 s"),
        ("account.baseline", "1 asset"),
        ("subscription.ping", "no effect"),
    ],
)
def test_an_event_without_a_movement_is_shown_with_its_subject(type_: str, says: str) -> None:
    body = sample(type_, "ops", nonce="n", now_ms=1_795_175_065_701).to("ops").body
    event = json.loads(body)
    receipt = Receipt(event, None, is_verified=True, status=200, attempt=1, is_repeat=False, order=None)
    assert says in listen.receipt_text(receipt, 0)


def test_listen_as_json_is_one_object_a_line_with_the_event_whole() -> None:
    with contextlib.closing(Listening("--json")) as listening:
        for webhook in (fresh(an_event(type="\x1b\x7f\ud800", fee=1.5)), fresh().but(signature="v1")):
            listening.post(webhook)
        _, lines, _ = listening.end(signal.SIGTERM)
    assert all(line.isascii() and line.isprintable() for line in lines)
    taken, refused = map(json.loads, lines)
    assert_documented(["listen", "--json"], "\n".join(lines))
    assert taken["event"]["type"] == "\x1b\x7f\ud800"
    assert taken["event"]["data"] == a_change()
    assert (taken["verified"], taken["status"], taken["problem"]) == (True, 200, None)
    assert (refused["verified"], refused["status"], refused["event"]) == (False, 400, None)
    assert refused["problem"]["step"] == "malformed signature"


def test_listen_fails_and_delays_as_asked_and_forwards_the_rest_unchanged() -> None:
    with contextlib.closing(Listening("--json")) as behind:
        options = ("--fail", "503:2", "--delay", "200ms", "--forward-to", behind.url)
        with contextlib.closing(Listening(*options)) as listening:
            started = time.monotonic()
            posts = [fresh(), fresh(), fresh(), fresh(None, OTHER_SECRET), fresh()]
            statuses = [listening.post(each) for each in posts]
            took_s = time.monotonic() - started
            _, lines, _ = behind.end(signal.SIGTERM)
            statuses.append(listening.post(fresh()))  # the listener has ended
            _, shown, summary = listening.end(signal.SIGTERM)
    assert statuses == [503, 503, 200, 400, 200, 502]
    assert took_s >= 5 * 0.2
    handed_on = [json.loads(line) for line in lines]
    assert [(each["verified"], each["attempt"], each["status"]) for each in handed_on] == [
        (True, 1, 200),
        (True, 2, 200),
    ]
    assert "answered 503" in shown[1]
    assert "attempt 3 here" in shown[2]
    assert "a repeat" in shown[4]
    assert "answered 502" in shown[5]
    assert summary.startswith("took 1 event; 1 repeat, 0 gaps")


def saved_by(folder: Path, *webhooks: Webhook) -> tuple[list[Path], list[str]]:
    """What `listen --save` writes of these, and the lines that it prints."""
    with contextlib.closing(Listening("--save", str(folder))) as listening:
        assert listening.shown[0] == f"try each again: watcher verify --secret-env S {folder}/FILE\n"
        for webhook in webhooks:
            listening.post(webhook)
        _, lines, _ = listening.end(signal.SIGTERM)
    return sorted(folder.iterdir()), lines


def test_verify_reads_what_listen_saved_genuine_or_not(tmp_path: Path) -> None:
    odd = fresh('{"text":"\\u00e4 \u00e4","a":"1"}\r\n\r\n'.encode())
    forged = fresh(None, OTHER_SECRET).but(id="evt_2/$(x)")
    files, lines = saved_by(tmp_path / "in" / "here", fresh(), odd, forged)
    assert [str(file) in line for file, line in zip(files, lines, strict=True)] == [True] * 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    for file, code in zip(files, (0, 0, 1), strict=True):
        result = run(verify.command, "--secret-env", "S", str(file), S=SECRET)
        assert result.exit_code == code, result.output
    assert verdicts(result) == ["ok"] * 5 + ["FAILED", "-"]
    assert files[1].read_bytes().endswith(odd.body)


def test_a_saved_webhook_is_as_old_as_it_was_when_it_arrived(tmp_path: Path) -> None:
    then = signed(at=1_614_265_330)
    request = "".join(f"{name}: {value}\n" for name, value in then.headers.items())
    for at, code, words in (("1614265331.5", 0, "genuine"), ("1614269330", 1, "sent 4000 s ago")):
        (tmp_path / at).write_bytes(
            f"POST /x HTTP/1.1\nWatcher-Received-At: {at}\n{request}\n".encode() + then.body
        )
        result = run(verify.command, "--secret-env", "S", str(tmp_path / at), S=SECRET)
        assert (result.exit_code, words in result.stdout) == (code, True)


def test_an_unwritable_place_is_reported_before_anything_is_received(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(listen.command, "--save", str(tmp_path / "file")).exit_code == 2
    below = run(listen.command, "--save", str(tmp_path / "file" / "in"))
    assert (below.exit_code, "cannot make" in below.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--fail", "503"], "as in 503:2"),
        (["--fail", "99:1"], "as in 503:2"),
        (["--fail", "503:0"], "as in 503:2"),
        (["--delay", "2"], "not a duration"),
        (["--forward-to", "ftp://example.com"], "must begin with http"),
        *((["--forward-to", url], "must begin with http:// or https://, and name a host") for url in NO_URLS),
        (["--forward-to", "localhost:3000/hook"], "did you mean 'http://localhost:3000/hook'?"),
        (["--port", "8788", "--forward-to", "http://localhost:8788/"], "is this listener itself"),
        (["--secret-env", "BAD"], "not base64"),
    ],
)
def test_invalid_options_keep_the_listener_from_starting(arguments: list[str], why: str) -> None:
    result = run(listen.command, *arguments, BAD="whsec_canary!")
    assert result.exit_code == 2
    assert why in result.stderr


def test_importing_the_commands_does_not_import_the_listener() -> None:
    code = (
        "import sys, watcher.commands.listen, watcher.commands.verify, watcher.commands.secret;"
        "print([name for name in ('aiohttp', 'pydantic', 'cryptography') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
