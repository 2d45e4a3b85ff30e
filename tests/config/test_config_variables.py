import time
from pathlib import Path

import pytest

from watcher.config.variables import NotSet, interpolate, interpolate_all

ENVIRON = {"NAME": "value", "EMPTY": "", "DOLLAR": "${NAME}", "_x1": "y"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a${NAME}b${NAME}c", "avaluebvaluec"),
        ("${_x1}", "y"),
        ("${EMPTY}", ""),
        ("${NAME:-default}", "value"),
        ("${UNSET:-default}", "default"),
        ("${UNSET:-}", ""),
        ("${EMPTY:-default}", "default"),
        ("${UNSET:-a:-b $c {d}", "a:-b $c {d"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$${NAME}"),
        ("$NAME $$ $", "$NAME $$ $"),
        ("{NAME}", "{NAME}"),
        ("${DOLLAR}", "${NAME}"),
    ],
)
def test_references_are_replaced_once(text: str, expected: str) -> None:
    assert interpolate(text, ENVIRON) == expected


@pytest.mark.parametrize(
    "text", ["${", "${}", "${NAME", "${1NAME}", "${NA ME}", "${NAME-x}", "${:-x}", "${NÄME}", "${NAME:-x"]
)
def test_what_is_no_reference_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(NotSet, match="begins no") as refused:
        interpolate(text, ENVIRON)
    assert "NA" not in str(refused.value).replace("${NAME}", "").replace("${NAME:-default}", "")


def test_what_is_begun_many_times_and_never_ended_is_refused_in_no_time() -> None:
    started = time.thread_time()
    with pytest.raises(NotSet, match="begins no"):
        interpolate("${NAME:-x" * 20_000, ENVIRON)
    assert time.thread_time() - started < 1


def test_all_unset_names_of_a_text_are_told() -> None:
    with pytest.raises(NotSet) as refused:
        interpolate("${A} ${B} ${A}", {})
    assert (
        str(refused.value) == "the environment has no A and no A_FILE; the environment has no B and no B_FILE"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"s3cret\n", "s3cret"),
        (b"s3cret\r\n", "s3cret"),
        (b"s3cret\n\n", "s3cret\n"),
        (b" a ", " a "),
        (b"", ""),
    ],
)
def test_name_file_is_read_and_one_newline_is_taken_off(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert interpolate("${KEY}", {"KEY_FILE": str(path)}) == expected


def test_the_variable_wins_over_the_file() -> None:
    assert interpolate("${KEY}", {"KEY": "set", "KEY_FILE": "/nonexistent"}) == "set"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is not UTF-8 text"),
        (b"x" * 70_000, "is longer than 65536"),
    ],
)
def test_a_bad_file_is_told_by_the_name_of_its_variable(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "canary"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotSet, match=f"the file that KEY_FILE names {reason}") as refused:
        interpolate("${KEY}", {"KEY_FILE": str(path)})
    assert "canary" not in str(refused.value)


def test_texts_are_found_wherever_they_are_and_keys_stay() -> None:
    refused: list[object] = []
    tree = {"${NAME}": ["${NAME}", {"a": "${UNSET}"}, 1, True]}
    found = interpolate_all(tree, ENVIRON, lambda key, reason: refused.append((key, reason)))
    assert found == {"${NAME}": ["value", {"a": "${UNSET}"}, 1, True]}
    assert refused == [(("${NAME}", 1, "a"), "the environment has no UNSET and no UNSET_FILE")]
