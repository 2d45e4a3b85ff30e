"""Edits of files are noticed when they are complete, each once."""

import os
from pathlib import Path

import pytest

from watcher.service.exposure import FileWatch


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "watcher.toml", tmp_path / "accounts.jsonl"]
    for path in paths:
        write(path, "one")
    return paths


_ticks = iter(range(10**9, 10**12, 10**6))


def write(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(1, next(_ticks)))  # whatever the file system's clock makes of two edits in a row


def test_an_unchanged_file_is_no_edit(files: list[Path]) -> None:
    watch = FileWatch(files)
    assert [watch.look() for _ in range(3)] == [False, False, False]


@pytest.mark.parametrize("number", [0, 1])
def test_an_edit_is_reported_once_it_is_complete(files: list[Path], number: int) -> None:
    watch = FileWatch(files)
    write(files[number], "half")
    assert not watch.look()
    write(files[number], "whole")
    assert not watch.look()
    assert watch.look()
    watch.reading()
    assert not watch.look()


def test_a_file_that_replaces_another_is_an_edit(files: list[Path], tmp_path: Path) -> None:
    watch = FileWatch(files)
    stamp = files[0].stat().st_mtime_ns
    (tmp_path / "new").write_text("two")
    os.utime(tmp_path / "new", ns=(stamp, stamp))  # as a copy that keeps the times
    (tmp_path / "new").replace(files[0])
    assert [watch.look(), watch.look()] == [False, True]


def test_a_link_that_points_elsewhere_is_an_edit(files: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(files[0])
    watch = FileWatch([link])
    link.unlink()
    link.symlink_to(files[1])
    assert [watch.look(), watch.look()] == [False, True]


def test_a_missing_file_is_no_edit_until_it_is_back(files: list[Path]) -> None:
    watch = FileWatch(files)
    files[0].unlink()
    assert [watch.look(), watch.look(), watch.look()] == [False, False, False]
    write(files[0], "two")
    assert [watch.look(), watch.look()] == [False, True]


def test_a_file_that_never_existed_hides_no_other_edit_and_is_noticed_when_it_appears(
    files: list[Path], tmp_path: Path
) -> None:
    watch = FileWatch([*files, tmp_path / "secret"])
    write(files[0], "two")
    assert [watch.look(), watch.look()] == [False, True]
    watch.reading()
    write(tmp_path / "secret", "s")
    assert [watch.look(), watch.look()] == [False, True]


def test_an_edit_while_the_files_are_read_is_not_lost(files: list[Path]) -> None:
    watch = FileWatch(files)
    watch.reading()
    write(files[0], "meanwhile")
    watch.follow(files)
    assert [watch.look(), watch.look()] == [False, True]


def test_a_file_that_appears_while_its_configuration_is_read_is_not_missed(files: list[Path]) -> None:
    watch = FileWatch(files[:1])
    files[1].unlink()
    watch.reading()
    files[1].write_text("it was missing a moment ago")
    watch.follow(files)
    assert [watch.look(), watch.look()] == [False, True]


def test_other_files_are_watched_from_when_they_are_named(files: list[Path]) -> None:
    watch = FileWatch(files[:1])
    write(files[1], "not ours yet")
    watch.follow(files)
    assert [watch.look(), watch.look()] == [False, False]
    write(files[1], "ours")
    assert [watch.look(), watch.look()] == [False, True]
    watch.follow(files[:1])
    watch.reading()
    write(files[1], "ours no more")
    assert [watch.look(), watch.look()] == [False, False]
