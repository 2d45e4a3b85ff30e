"""`watcher health` says by its exit code whether a worker lives, and quickly."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result

import watcher
from watcher.commands.health import command

SOURCE = Path(watcher.__file__).parents[1]
TOKEN = "a-token-of-some-length"


def health(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(command, arguments, env=environment, standalone_mode=False)


def touched(path: Path, *, ago_s: float = 0) -> str:
    path.touch()
    os.utime(path, (time.time() - ago_s, time.time() - ago_s))
    return str(path)


def test_a_fresh_heartbeat_is_a_healthy_worker(tmp_path: Path) -> None:
    done = health("--file", touched(tmp_path / "beat", ago_s=20))
    assert (done.return_value, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(
    ("ago_s", "max_age", "code"),
    [
        (29, "30s", 0),
        (32, "30s", 1),
        (32, "1m", 0),
        (3, "1s", 1),
        (-2, "30s", 0),
        (-3600, "30s", 1),
        (0.3, "250ms", 1),
    ],
)
def test_max_age_bounds_a_heartbeat_and_one_from_the_future_is_no_proof(
    tmp_path: Path, ago_s: float, max_age: str, code: int
) -> None:
    path = touched(tmp_path / "beat", ago_s=ago_s)
    assert health("--file", path, "--max-age", max_age).return_value == code


def test_an_old_or_missing_heartbeat_is_an_unhealthy_worker(tmp_path: Path) -> None:
    old = health("--file", touched(tmp_path / "beat", ago_s=100))
    assert (old.return_value, old.stdout) == (1, "")
    assert "was touched 100 s ago: the worker is stuck or gone" in old.stderr
    missing = health("--file", str(tmp_path / "none"))
    assert missing.return_value == 1
    assert "No such file or directory; is a worker running with --heartbeat-file?" in missing.stderr


def test_the_environment_may_name_the_file_and_a_url_wins_over_it(tmp_path: Path) -> None:
    path = touched(tmp_path / "beat")
    assert health(WATCHER_HEARTBEAT_FILE=path).return_value == 0
    assert health("--url", "http://127.0.0.1:1", WATCHER_HEARTBEAT_FILE=path).return_value == 1


class _Worker(BaseHTTPRequestHandler):
    """Answers with the server's `status`; if there is a token, only to clients that send it."""

    def do_GET(self) -> None:
        status, body, token = self.server.answer  # type: ignore[attr-defined]
        is_known = token is None or self.headers["authorization"] == f"Bearer {token}"
        self.send_response(status if is_known and self.path == "/livez" else 401)
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not here."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Worker) as server:
        server.answer = (200, b"ok\n", None)  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def url(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_worker_that_answers_200_is_healthy(server: HTTPServer) -> None:
    for address in (url(server), f"{url(server)}/"):
        assert health("--url", address).return_value == 0


@pytest.mark.parametrize("status", [204, 301, 401, 404, 500, 503])
def test_a_worker_that_answers_anything_else_is_unhealthy(server: HTTPServer, status: int) -> None:
    server.answer = (status, b"deliver has not turned for 130 s\n", None)  # type: ignore[attr-defined]
    done = health("--url", url(server))
    assert (done.return_value, done.stdout) == (1, "")
    assert f"answers {status}" in done.stderr


def test_the_reason_is_shown_without_control_characters(server: HTTPServer) -> None:
    server.answer = (503, b"poll shop\nhas \x1b[31mnot turned\n", None)  # type: ignore[attr-defined]
    done = health("--url", url(server))
    assert "answers 503: poll shop; has \\x1b[31mnot turned" in done.stderr


def test_a_configured_token_is_sent(server: HTTPServer, tmp_path: Path) -> None:
    server.answer = (200, b"", TOKEN)  # type: ignore[attr-defined]
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert health("--url", url(server)).return_value == 1
    assert health("--url", url(server), WATCHER_HTTP_TOKEN=TOKEN).return_value == 0
    assert health("--url", url(server), WATCHER_HTTP_TOKEN_FILE=str(tmp_path / "token")).return_value == 0
    assert health("--url", url(server), "--http-token-env", "MINE", MINE=TOKEN).return_value == 0


def test_an_address_without_a_listener_is_reported(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = health("--url", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert done.return_value == 1
    assert "nothing answers at http://127.0.0.1:" in done.stderr
    assert "Connection refused" in done.stderr


@pytest.mark.parametrize("host", ["watcher..svc", "x" * 64])
def test_an_impossible_host_is_an_unhealthy_worker(host: str) -> None:
    done = health("--url", f"http://{host}:8787")
    assert done.return_value == 1
    assert f"nothing answers at http://{host}:8787: " in done.stderr


@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1", "127.0.0.1:8787", "http://", "http://me:pass@127.0.0.1", "http://[::1"]
)
def test_an_invalid_url_is_a_usage_error(address: str) -> None:
    assert "http://HOST:PORT" in str(health("--url", address).exception)


def test_an_invalid_max_age_is_a_usage_error(tmp_path: Path) -> None:
    assert "not a duration" in str(health("--file", str(tmp_path), "--max-age", "soon").exception)


MOST_TIMES_NOTHING = 10
"""As many as `python -c pass` takes of the processor: 100 ms, where that takes 10."""


def spent_s(*arguments: str) -> "tuple[float, subprocess.CompletedProcess[str]]":
    """Run Python to its end; returns its CPU time, because other work must not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def test_it_takes_less_than_a_tenth_of_a_second_and_imports_nothing_heavy(tmp_path: Path) -> None:
    source = (
        "import sys\nfrom watcher.cli import main\n"
        "try: main(['health', '--file', sys.argv[1]])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    nothing, health = [], []
    for _ in range(5):  # in turns, so that a slower moment falls on both; the first one may have to compile
        nothing.append(spent_s("-c", "pass")[0])
        taken_s, done = spent_s("-c", source, touched(tmp_path / "beat"))
        health.append(taken_s)
    assert (done.returncode, done.stdout) == (0, "ok\n")
    heavy = {
        "asyncio",
        "aiohttp",
        "redis",
        "pydantic",
        "structlog",
        "orjson",
        "prometheus_client",
        "http.client",
        "ssl",
    }
    assert not heavy & {*done.stderr.split()}
    assert min(health) < MOST_TIMES_NOTHING * min(nothing)
