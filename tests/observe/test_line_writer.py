"""Log lines get out if they are read, and never block the program if they are not."""

import os
import threading
import time
from collections.abc import Callable
from itertools import chain

import pytest

from watcher.observe.log import LineWriter, write_to


def a_line(number: int, size: int = 300) -> bytes:
    return f"{number:06d}".encode().ljust(size - 1, b".") + b"\n"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def no_loss(lines: int) -> None:
    pytest.fail(f"{lines} lines were lost")


class Reader:
    """The reader of stdout: it reads, pauses, or has closed."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_gone = False
        self.is_reading = threading.Event()
        self.is_reading.set()

    def write(self, data: bytes) -> int:
        self.is_reading.wait(10)
        if self.is_gone:
            raise BrokenPipeError
        self.written.append(data)
        return len(data)

    @property
    def lines(self) -> list[bytes]:
        return b"".join(self.written).splitlines(keepends=True)


def test_all_lines_get_out_in_order_and_close_waits_for_them() -> None:
    reader = Reader()
    writer = LineWriter(reader.write, on_drop=no_loss)
    lines = [a_line(number) for number in range(5_000)]
    for line in lines:
        writer.put(line)
    writer.close()
    writer.close()
    assert reader.lines == lines


def test_a_write_holds_whole_lines_and_is_atomic_unless_one_line_is_larger() -> None:
    reader = Reader()
    writer = LineWriter(reader.write, on_drop=no_loss)
    reader.is_reading.clear()
    for number in range(100):
        writer.put(a_line(number, size=100 + 37 * number))
    writer.put(a_line(100, size=9_000))
    reader.is_reading.set()
    writer.close()
    assert all(written.endswith(b"\n") for written in reader.written)
    assert all(len(written) <= 4096 or written.count(b"\n") == 1 for written in reader.written)
    assert len(reader.written) < 100


def test_a_stopped_reader_loses_lines_delays_nothing_and_then_sees_one_line_about_the_loss() -> None:
    reader, shown = Reader(), list[int]()
    writer = LineWriter(reader.write, on_drop=shown.append, capacity=10)
    reader.is_reading.clear()
    writer.put(a_line(0))
    started = time.monotonic()
    for number in range(1, 1_000):
        writer.put(a_line(number))
    assert time.monotonic() - started < 1
    lost = writer.dropped
    assert lost > 900
    assert shown == []
    reader.is_reading.set()
    until(lambda: shown != [])
    writer.close()
    assert shown == [lost]
    assert len(reader.lines) + lost == 1_000


def test_lines_are_lost_while_there_is_no_reader() -> None:
    reader, shown = Reader(), list[int]()
    writer = LineWriter(reader.write, on_drop=shown.append)
    reader.is_gone = True
    for number in range(5):
        writer.put(a_line(number))
    until(lambda: writer.dropped == 5)
    assert shown == []
    reader.is_gone = False
    writer.put(a_line(5))
    writer.close()
    assert shown == [5]
    assert reader.lines == [a_line(5)]


def test_closing_waits_longer_for_a_slow_reader_than_for_a_stopped_one() -> None:
    reader = Reader()

    def write_slowly(data: bytes) -> int:
        time.sleep(0.05)
        return reader.write(data)

    writer = LineWriter(write_slowly, on_drop=no_loss)
    lines = [a_line(number, size=4_000) for number in range(10)]
    for line in lines:
        writer.put(line)
    writer.close(timeout_s=0.25)
    assert reader.lines == lines


def test_closing_does_not_wait_for_ever_for_a_reader() -> None:
    reader = Reader()
    reader.is_reading.clear()
    writer = LineWriter(reader.write, on_drop=no_loss)
    writer.put(a_line(0))
    started = time.monotonic()
    writer.close(timeout_s=0.05)
    assert time.monotonic() - started < 1
    reader.is_reading.set()


def test_the_last_lines_get_out_too() -> None:
    reader = Reader()
    writer = LineWriter(reader.write, on_drop=lambda _: writer.put(b"shown\n"), capacity=1)
    reader.is_reading.clear()
    for number in range(10):
        writer.put(a_line(number))
    threading.Timer(0.02, reader.is_reading.set).start()
    writer.close()
    assert reader.lines[-1] == b"shown\n"


def test_a_non_blocking_pipe_gets_every_line_whole() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    lines = [a_line(number) for number in range(2_000)]  # ten times what a pipe holds
    with open(read_end, "rb") as reader, open(write_end, "w") as stream:
        writer = LineWriter(write_to(stream), on_drop=no_loss)
        for line in lines:
            writer.put(line)
        assert list(chain.from_iterable([reader.readline()] for _ in lines)) == lines
        writer.close()


def test_an_unexpected_error_loses_the_lines_of_that_moment_and_is_reported() -> None:
    reader, shown, bugs = Reader(), list[int](), list[Exception]()

    def write(data: bytes) -> int:
        if not reader.written and not bugs:
            raise TypeError("nobody thought of this")
        return reader.write(data)

    writer = LineWriter(write, on_drop=shown.append, on_bug=bugs.append)
    writer.put(a_line(0))
    until(lambda: writer.dropped == 1)
    writer.put(a_line(1))
    until(lambda: shown == [1])
    writer.close()
    assert reader.lines == [a_line(1)]
    assert [str(bug) for bug in bugs] == ["nobody thought of this"]


def test_a_failure_to_report_lost_lines_does_not_end_the_log() -> None:
    reader = Reader()

    def fail(_: object) -> None:
        raise RuntimeError("and nobody thought of this")

    writer = LineWriter(reader.write, on_drop=fail, on_bug=fail)
    reader.is_gone = True
    writer.put(a_line(0))
    until(lambda: writer.dropped == 1)
    reader.is_gone = False
    writer.put(a_line(1))
    until(lambda: reader.lines == [a_line(1)])
    writer.put(a_line(2))
    writer.close()
    assert reader.lines == [a_line(1), a_line(2)]
