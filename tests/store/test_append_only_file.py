"""An append-only file with a bad end after a power loss: cut off, or reported with what to do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from watcher.store.embedded import Engine, end_of, repair
from watcher.store.exceptions import StoreUnreachable

ENGINE = Engine("valkey", 9, Path("/opt/it's here/valkey-server"))
MULTI, EXEC = (b"MULTI",), (b"EXEC",)


def written(*commands: tuple[bytes, ...]) -> bytes:
    """Commands as a server writes them."""
    return b"".join(
        b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        for words in commands
    )


SET = (b"SET", b"key", b'{"id":"evt_1"}')
STEP = written(MULTI, SET, SET, EXEC)
WHOLE = written((b"SELECT", b"0"), SET) + STEP

words = st.binary(max_size=40).filter(lambda word: b"*" not in word)
steps = st.lists(
    st.one_of(
        st.lists(words, min_size=1, max_size=4).map(lambda found: written((b"SET", *found))),
        st.just(STEP),
    ),
    min_size=1,
    max_size=8,
)


def test_a_whole_file_is_complete_to_its_last_byte() -> None:
    assert end_of(WHOLE) == (len(WHOLE), len(WHOLE), False)
    assert end_of(b"") == (0, 0, False)


@given(steps, st.data())
def test_a_file_cut_anywhere_is_whole_up_to_its_last_transaction(
    parts: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(parts)
    at = data.draw(st.integers(0, len(whole)))
    ends = [len(b"".join(parts[:count])) for count in range(len(parts) + 1)]
    end = end_of(whole[:at])
    assert end.sound == max(one for one in ends if one <= at)
    assert not end.follows


@given(steps, st.integers(1, 9000), st.data())
def test_zeros_at_the_end_hide_nothing(parts: list[bytes], zeros: int, data: st.DataObject) -> None:
    whole = b"".join(parts)
    at = data.draw(st.integers(0, len(whole)))
    end = end_of(whole[:at] + bytes(zeros))
    assert end.sound == end_of(whole[:at]).sound
    assert not end.follows


@given(st.binary(max_size=2000))
def test_no_garbage_is_read_as_a_command(garbage: bytes) -> None:
    end = end_of(WHOLE + garbage)
    assert len(WHOLE) <= end.sound <= end.stop <= len(WHOLE + garbage)


@pytest.mark.parametrize("damage", [b"xx", b"\0\0", b"$9", b"*9"])
@pytest.mark.parametrize("at", [0, 8, 30, len(WHOLE) - len(STEP) + 3])
def test_damage_in_the_middle_is_distinguished_from_a_bad_end(damage: bytes, at: int) -> None:
    data = WHOLE[:at] + damage + WHOLE[at + 2 :] + STEP
    end = end_of(data)
    assert end == (len(data), len(data), False) or end.follows


def a_directory(tmp_path: Path, content: bytes, *, name: str = "appendonly.aof.2.incr.aof") -> Path:
    """What the embedded server leaves, and the last of its files."""
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    lines = (
        "appendonly.aof.2.base.aof seq 2 type b",
        "appendonly.aof.1.incr.aof seq 1 type h",
        f"{name} seq 2 type i",
    )
    (folder / "appendonly.aof.manifest").write_text("".join(f"file {line}\n" for line in lines))
    file = folder / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (bytes(4096), "zeros"),
        (STEP[:-1], "a step that is not whole"),
        (written(MULTI, SET), "a step that is not whole"),
        (written(SET)[:-9] + bytes(512), "a step that is not whole"),
        (b"\xff\x00garbage*3\r\n$3\r\n" * 20, "a step that is not whole"),
    ],
)
def test_a_bad_end_is_cut_off_and_a_copy_is_kept(tail: bytes, reason: str, tmp_path: Path) -> None:
    file = a_directory(tmp_path, WHOLE + tail)
    with capture_logs() as lines:
        assert repair(tmp_path, ENGINE)
        assert not repair(tmp_path, ENGINE), "it is sound now"
    assert file.read_bytes() == WHOLE
    (copy,) = file.parent.glob("*.damaged-*")
    assert copy.read_bytes() == WHOLE + tail
    (line,) = lines
    assert line == {
        "event": "store.repaired",
        "log_level": "warning",
        "file": str(file),
        "bytes": len(tail),
        "copy": str(copy),
        "reason": reason,
    }


@pytest.mark.parametrize("middle", [b"garbage", bytes(4096), b"$5000000\r\n"])
def test_readable_data_behind_the_damage_is_not_cut_off_but_left_to_a_person(
    middle: bytes, tmp_path: Path
) -> None:
    content = WHOLE + middle + STEP
    file = a_directory(tmp_path, content)
    with pytest.raises(StoreUnreachable) as raised:
        repair(tmp_path, ENGINE)
    assert file.read_bytes() == content
    command = str(raised.value).partition("): ")[2]
    manifest = file.with_name("appendonly.aof.manifest")
    assert command == (
        f"cp {file} {file}.damaged && "
        f"ln -sf '/opt/it'\"'\"'s here/valkey-server' {tmp_path}/valkey-check-aof && "
        f"{tmp_path}/valkey-check-aof --fix {manifest}"
    )


def test_more_garbage_than_a_power_loss_leaves_is_left_to_a_person(tmp_path: Path) -> None:
    file = a_directory(tmp_path, WHOLE + b"x" * ((1 << 20) + 1))
    with pytest.raises(StoreUnreachable, match="check-aof --fix"):
        repair(tmp_path, ENGINE)
    assert file.stat().st_size == len(WHOLE) + (1 << 20) + 1


@pytest.mark.parametrize("name", ["../../elsewhere", "none", ""])
def test_no_file_outside_of_the_directory_is_changed(name: str, tmp_path: Path) -> None:
    a_directory(tmp_path, WHOLE + bytes(9))
    manifest = tmp_path / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text(f"file {name} seq 1 type i\n")
    assert not repair(tmp_path, ENGINE)
    manifest.unlink()
    assert not repair(tmp_path, ENGINE)
