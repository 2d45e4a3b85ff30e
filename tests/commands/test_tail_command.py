"""`watcher tail` as a user's shell runs it."""

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.support.program import COMMAND, environment, watcher


def a_line(event: str = "poll.finished", level: str = "info", **fields: str) -> str:
    return json.dumps(
        {"timestamp": "2026-11-20T14:03:05.120Z", "level": level, "event": event, **fields},
        separators=(",", ":"),
    )


STREAM = "\n".join(
    [
        "worker-1  | " + a_line(account="treasury"),
        "worker-1  | Killed\x1b]0;title\x07",
        "worker-2  | " + a_line("delivery.dead", "warning", subscription="ops", account="alice"),
    ]
)
FINISHED = "2026-11-20T14:03:05.120Z info    poll.finished        account=treasury\n"
DEAD = "2026-11-20T14:03:05.120Z warning delivery.dead        subscription=ops account=alice\n"


def test_standard_input_is_shown_pretty_without_colours_in_a_pipe() -> None:
    done = watcher("tail", stdin=STREAM)
    assert done.stdout == FINISHED + "worker-1  | Killed\\x1b]0;title\\x07\n" + DEAD
    assert (done.stderr, done.returncode) == ("", 0)


def test_filters_choose_lines() -> None:
    assert watcher("tail", "--event", "delivery.*", stdin=STREAM).stdout == DEAD
    assert watcher("tail", "--account", "nobody", "--account", "trea*", stdin=STREAM).stdout == FINISHED


def test_json_is_one_object_a_line_and_foreign_lines_go_to_stderr() -> None:
    done = watcher("tail", "--json", stdin=STREAM)
    assert done.stdout.splitlines()[0] == a_line(account="treasury")
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == [
        "poll.finished",
        "delivery.dead",
    ]
    assert done.stderr == "worker-1  | Killed\\x1b]0;title\\x07\n"


def test_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(a_line(account="treasury") + "\n")
    (tmp_path / "two").write_text("plain, without end")
    done = watcher("tail", str(tmp_path / "one"), str(tmp_path / "two"))
    assert done.stdout == FINISHED + "plain, without end\n"


def test_a_missing_file_is_a_usage_error() -> None:
    done = watcher("tail", "/nowhere/log")
    assert done.returncode == 2
    assert "'/nowhere/log' does not exist" in done.stderr


def test_colours_can_be_asked_for_in_a_pipe() -> None:
    assert "\x1b[2maccount=\x1b[0mtreasury" in watcher("tail", "--color", stdin=STREAM).stdout


def test_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        [*COMMAND, "tail"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"a\n"
        process.stdout.close()
        process.stdin.write(b"b\n" * 10)
        process.stdin.close()
        assert process.wait(10) == 141
        assert process.stderr.read() == b""


def test_following_shows_a_line_at_once_and_ctrl_c_ends_it_with_130(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    with subprocess.Popen(
        [*COMMAND, "tail", "-f", str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with log.open("a") as file:
            file.write(a_line(account="treasury") + "\n")
        assert process.stdout.readline().decode() == FINISHED
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b""


def test_standard_input_cannot_be_followed_by_name(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    done = watcher("tail", "-f", "-", str(tmp_path / "log"))
    assert done.returncode == 2
