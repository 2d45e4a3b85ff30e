"""A log line as machines read it, as people see it, and what neither may contain."""

import io
import itertools
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.program import environment, script
from watcher.observe import log as logs
from watcher.observe.log import LineWriter, configure, log
from watcher.observe.tail import parse

Read = Callable[[], list[dict[str, Any]]]
SETUP = "from watcher.observe.log import configure, log\n"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    logs.unbind()
    logging.getLogger().removeHandler(logs._bridge)
    logging.captureWarnings(False)


def said(stream: io.StringIO, writer: LineWriter) -> str:
    writer.close()
    return stream.getvalue()


def the_line(say: Callable[[], object], level: str = "debug") -> dict[str, Any]:
    stream = io.StringIO()
    writer = configure(level, "json", stream)
    say()
    (line,) = map(json.loads, said(stream, writer).splitlines())
    assert isinstance(line, dict)
    return line


def the_text(say: Callable[[], object]) -> str:
    stream = io.StringIO()
    writer = configure("debug", "pretty", stream)
    say()
    return said(stream, writer)


def test_a_line_has_timestamp_level_event_and_then_fields_in_the_order_of_the_call() -> None:
    before = datetime.now(UTC)
    line = the_line(
        lambda: log.info("poll.finished", provider="loopring", account="treasury", duration_ms=85)
    )
    assert list(line) == ["timestamp", "level", "event", "provider", "account", "duration_ms"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert abs((datetime.fromisoformat(line["timestamp"]) - before).total_seconds()) < 5
    assert (line["level"], line["event"], line["duration_ms"]) == ("info", "poll.finished", 85)


def test_a_prefix_is_put_before_every_field_but_the_standard_ones() -> None:
    stream = io.StringIO()
    writer = configure("info", "json", stream, prefix="watcher_")
    log.warning("delivery.retried", subscription="ops", status=503)
    log.exception("bug", exc_info=ValueError("no"))
    retried, bug = map(json.loads, said(stream, writer).splitlines())
    assert [*retried] == ["timestamp", "level", "watcher_event", "watcher_subscription", "watcher_status"]
    assert "ValueError" in bug["watcher_exception"]
    assert parse(json.dumps(bug)) == {name.removeprefix("watcher_"): bug[name] for name in bug}


def test_the_pretty_format_has_no_prefix() -> None:
    stream = io.StringIO()
    writer = configure("info", "pretty", stream, prefix="watcher_")
    log.info("poll.finished", account="treasury")
    assert said(stream, writer).endswith("poll.finished        account=treasury\n")


def test_bound_ids_come_first() -> None:
    line = the_line(lambda: log.bind(account="treasury").warning("account.stale", trouble="auth"))
    assert list(line)[2:] == ["event", "account", "trouble"]


def test_lines_below_the_level_are_not_written() -> None:
    def say() -> None:
        log.debug("poll.finished")
        log.info("poll.finished")
        log.warning("account.stale")

    assert the_line(say, level="WARNING")["event"] == "account.stale"


@pytest.mark.parametrize(("level", "layout"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_level_or_format_is_refused(level: str, layout: Any) -> None:
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        configure(level, layout, io.StringIO())


any_text = st.text(st.characters(codec=None, exclude_categories=()))


@settings(max_examples=50)
@given(any_text | st.lists(any_text) | st.dictionaries(any_text, any_text))
def test_no_value_gets_a_raw_control_character_into_either_format(value: object) -> None:
    for render in (the_text, lambda say: json.dumps(the_line(say), ensure_ascii=False)):
        written = render(lambda: log.info("poll.rejected", reason=value))
        assert all(c.isprintable() or c.isspace() for c in written)
        assert written.count("\n") <= 1
        assert not set(written) & set("\x1b\x85\x9b\r\u2028\u202e")


def test_a_reason_is_not_cut_before_it_says_what_to_do() -> None:
    reason = f"Redis at {'r' * 200} evicts keys\n; set maxmemory-policy noeviction"
    line = the_line(lambda: log.info("store.refusing", reason=reason))
    assert line["reason"] == reason.replace("\n", "\\n")
    assert len(the_line(lambda: log.info("store.refusing", reason=10_000 * "x"))["reason"]) == 600


def test_a_value_is_cut_at_200_characters() -> None:
    line = the_line(lambda: log.info("delivery.retried", answer="x" * 10_000))
    assert len(line["answer"]) == 200


@pytest.mark.parametrize(
    "say",
    [
        lambda error: log.error("bug", exc_info=error),
        lambda error: log.error("bug", exc_info=(type(error), error, error.__traceback__)),
        lambda _: log.exception("bug"),
    ],
)
def test_an_exception_becomes_a_traceback_without_locals(say: Callable[[Exception], object]) -> None:
    def fail() -> None:
        canary = "canary-" + "in-a-local"
        nothing: dict[int, str] = {}
        try:
            nothing[len(canary)]
        except KeyError as error:
            say(error)

    line = the_line(fail)
    assert line["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert line["exception"].splitlines()[-1] == "KeyError: 17"
    assert "canary-in" not in json.dumps(line)
    assert "exc_info" not in line


def test_logging_an_exception_without_one_is_no_mistake() -> None:
    assert "exception" not in the_line(lambda: log.exception("bug"))
    assert "exception" not in the_line(lambda: log.info("bug", exc_info=None))


def test_a_repeated_bug_is_logged_once_and_later_with_a_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()
    out = io.StringIO()
    writer = configure("info", "json", out)

    def poll(account: str, answer: str) -> None:
        try:
            int(answer)
        except ValueError:
            log.exception("bug", affected="poll", account=account)

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(clock))
        for number in range(4000):
            poll(f"account-{number}", "no")
    log.error("bug", affected="poll", exc_info=ValueError("at another place"))
    writer.close()
    shown = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("times") for line in shown] == [None, 3601, None]
    assert [line.get("account") for line in shown] == ["account-0", "account-3600", None]


def test_pretty_puts_a_traceback_below_its_line_indented() -> None:
    first, *below = the_text(
        lambda: log.error("bug", exc_info=ValueError("no\nyes"), account="treasury")
    ).splitlines()
    assert first.endswith("error   bug                  account=treasury")
    assert below == ["    ValueError: no", "    yes"]


def test_libraries_are_logged_from_warning_on() -> None:
    def chat() -> None:
        library = logging.getLogger("aiohttp.client")
        library.info("chatter")
        library.warning("slow %s", "\x1b[1mhost")

    line = the_line(chat)
    assert (line["level"], line["event"]) == ("warning", "library.warned")
    assert (line["library"], line["message"]) == ("aiohttp.client", "slow \\x1b[1mhost")


def test_an_error_in_a_library_brings_its_traceback() -> None:
    def fail() -> None:
        try:
            os.stat("/nowhere")
        except OSError:
            logging.getLogger("asyncio").exception("Task exception was never retrieved")

    line = the_line(fail)
    assert (line["level"], line["event"], line["library"]) == ("error", "library.failed", "asyncio")
    assert line["exception"].endswith("No such file or directory: '/nowhere'")


def test_a_library_with_a_broken_log_message_harms_nothing() -> None:
    record = logging.LogRecord("redis", logging.WARNING, "", 0, "%d keys", ("no",), None)
    assert the_line(lambda: logs._bridge.handle(record))["message"] == "%d keys"


def test_python_warnings_are_logged_too() -> None:
    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            warnings.warn("old ways", DeprecationWarning, stacklevel=1)

    assert "DeprecationWarning: old ways" in the_line(warn)["message"]


def test_configuring_again_takes_the_new_stream_and_level() -> None:
    assert the_line(lambda: log.info("bug"), level="info")["event"] == "bug"
    assert the_line(lambda: log.debug("poll.finished"), level="debug")["event"] == "poll.finished"


def test_capture_logs_sees_the_lines_of_a_cached_logger() -> None:
    configure("debug", "json", io.StringIO())
    log.info("poll.finished")
    with structlog.testing.capture_logs() as lines:
        log.info("poll.rejected", account="treasury")
    assert lines == [{"event": "poll.rejected", "account": "treasury", "log_level": "info"}]


def test_json_goes_into_a_pipe_and_is_complete_when_the_process_ends() -> None:
    done = script(SETUP + "configure()\nfor n in range(3000): log.info('poll.finished', changes=n)")
    assert [json.loads(line)["changes"] for line in done.stdout.splitlines()] == list(range(3000))


def on_a_terminal(source: str, **env: str) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", source], stdout=theirs, env=environment(**env)) as process:
        os.close(theirs)
        seen = b""
        while chunk := _read(ours):
            seen += chunk
        assert process.wait(10) == 0
    os.close(ours)
    return seen.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what Linux says when the other end of a terminal is closed
        return b""


def test_a_terminal_gets_pretty_lines_with_colours_unless_no_color_is_set() -> None:
    say = "log.info('poll.finished', account='treasury')"
    assert "\x1b[2maccount=\x1b[0mtreasury" in on_a_terminal(f"{SETUP}configure()\n{say}")
    plain = on_a_terminal(f"{SETUP}configure(color=False)\n{say}")
    assert plain.endswith("info    poll.finished        account=treasury\r\n")
    assert "\x1b" not in plain


BUSY = (
    SETUP
    + """
import sys, time
writer = configure()
started = time.monotonic()
for n in range(20000): log.info('poll.finished', account='treasury', changes=n)
print(time.monotonic() - started, writer.dropped, file=sys.stderr)
"""
)


def test_a_reader_that_never_reads_neither_blocks_the_program_nor_its_end() -> None:
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.wait(20) == 0
        assert process.stderr is not None
        loop_s, dropped = map(float, process.stderr.read().split())
    assert dropped > 5_000
    assert loop_s < 5
    assert time.monotonic() - started < 10


def test_a_closed_pipe_is_no_failure() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert len(process.stderr.read().split()) == 2
        assert process.wait(20) == 0


def test_lost_lines_are_counted_in_the_log_itself() -> None:
    source = BUSY + "log.info('worker.stopped')\nwriter.close(timeout_s=40)"  # however slow its reader is
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        dropped = int(process.stderr.readline().split()[1])
        lines = [json.loads(line) for line in process.stdout]
    shown = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    assert shown >= dropped > 0
    assert len([line for line in lines if line["event"] == "poll.finished"]) + shown >= 20_000


def test_a_bug_of_the_writing_thread_is_logged_and_the_log_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        writer = configure("info", "json", stream)
        write, writer._write = writer._write, lambda _: len(None)  # type: ignore[arg-type]
        log.info("worker.stopped")
        deadline = time.monotonic() + 10
        while not writer.dropped:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        writer._write = write
        log.info("worker.started")
        writer.close()
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    events = [line["event"] for line in said]
    assert {"worker.started", "log.dropped"} <= set(events)
    assert writer.dropped >= 1
