"""Files are followed by name: through growth, rotation, truncation and absence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from watcher.observe.tail import follow


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def rotate(path: Path, text: str) -> None:
    path.rename(path.with_suffix(".1"))
    path.write_text(text)


def rotate_late(path: Path) -> None:
    """Write once more through the old name's file, as a program does that has it open."""
    append(path, "last\n")
    rotate(path, "first\n")


class Enough(Exception):
    pass


def followed(paths: list[Path], *steps: Callable[[], object]) -> list[str]:
    """Follow `paths`; whenever there is nothing new take the next step, until there is none."""
    left = iter(steps)

    def wait() -> None:
        step = next(left, None)
        if step is None:
            raise Enough
        step()

    lines: list[str] = []
    with pytest.raises(Enough):
        lines.extend(_each(paths, wait, lines))
    return lines


def _each(paths: list[Path], wait: Callable[[], None], lines: list[str]) -> list[str]:
    for line in follow(list(map(str, paths)), wait):
        lines.append(line)  # noqa: PERF402 - what was read counts although the end is an exception
    return []


def test_existing_lines_come_first_and_then_new_ones(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\nb\n")
    assert followed([log], lambda: append(log, "c\nd\n"), lambda: append(log, "e\n")) == [*"abcde"]


def test_half_a_line_waits_for_the_rest_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\nb")
    assert followed([log], lambda: append(log, "c"), lambda: append(log, "d\n")) == ["a", "bcd"]


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\n")
    assert followed([log], lambda: rotate(log, "b\n"), lambda: append(log, "c\n")) == ["a", "b", "c"]


def test_lines_written_just_before_a_rotation_are_not_lost(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\n")
    assert followed([log], lambda: rotate_late(log)) == ["a", "last", "first"]


def test_half_a_line_at_the_end_of_a_rotated_file_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\nhalf")
    assert followed([log], lambda: rotate(log, "b\n")) == ["a", "half", "b"]


def test_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a long line\n")
    assert followed([log], lambda: log.write_text("b\n"), lambda: append(log, "c\n")) == [
        "a long line",
        "b",
        "c",
    ]


def test_a_missing_file_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\n")
    assert followed([log], log.unlink, lambda: None, lambda: log.write_text("b\n")) == ["a", "b"]


def test_several_files_are_followed_at_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a\n")
    two.write_text("b\n")
    assert followed([one, two], lambda: append(two, "c\n"), lambda: append(one, "d\n")) == [*"abcd"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 3_000_000)
    assert all(len(line) <= 1 << 20 for line in followed([log]))
