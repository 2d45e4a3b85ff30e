import time
from pathlib import Path

import pytest

from watcher.config import files
from watcher.config.files import interpolate_all
from watcher.environment import Environment, NotSet


def interpolate(text: str, environ: dict[str, str]) -> str:
    return files.interpolate(text, Environment(environ))


ENVIRON = {"NAME": "value", "EMPTY": "", "DOLLAR": "${NAME}", "_x1": "y"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a${NAME}b${NAME}c", "avaluebvaluec"),
        ("${_x1}", "y"),
        ("${EMPTY:-}", ""),
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
def test_an_invalid_reference_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(NotSet, match="begins no") as refused:
        interpolate(text, ENVIRON)
    assert "NA" not in str(refused.value).replace("${NAME}", "").replace("${NAME:-default}", "")


def test_many_unclosed_references_are_refused_quickly() -> None:
    started = time.thread_time()
    with pytest.raises(NotSet, match="begins no"):
        interpolate("${NAME:-x" * 20_000, ENVIRON)
    assert time.thread_time() - started < 1


def test_all_unset_names_of_a_text_are_reported() -> None:
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
        (b"\xef\xbb\xbfs3cret\r\n", "s3cret"),
    ],
)
def test_name_file_is_read_and_one_newline_stripped(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert interpolate("${KEY}", {"KEY_FILE": str(path)}) == expected


@pytest.mark.parametrize("text", ["${A:-${B}}", "${A:-${B}", "x${A:-y$${B}z"])
def test_a_nested_default_is_refused_by_name_whether_or_not_it_is_needed(text: str) -> None:
    for environ in ({}, {"A": "canary", "B": "canary"}):
        with pytest.raises(NotSet, match="the default of A holds another") as refused:
            interpolate(text, environ)
        assert "canary" not in str(refused.value)


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from the file\n")
    (tmp_path / "empty").write_bytes(b"\xef\xbb\xbf\r\n")
    file = {"KEY": "", "KEY_FILE": str(tmp_path / "key")}
    assert interpolate("${KEY} ${KEY:-default}", file) == "from the file from the file"
    assert interpolate("${KEY:-default}", {"KEY": "", "KEY_FILE": ""}) == "default"
    assert interpolate("${KEY:-default}", {"KEY_FILE": str(tmp_path / "empty")}) == "default"
    for environ, reason in (
        ({"KEY": ""}, "KEY is empty, which counts as unset, and there is no KEY_FILE"),
        ({"KEY_FILE": ""}, "the environment has no KEY and no KEY_FILE"),
        ({"KEY_FILE": str(tmp_path / "empty")}, "the file that KEY_FILE names is empty"),
    ):
        with pytest.raises(NotSet) as refused:
            interpolate("${KEY}", environ)
        assert str(refused.value) == reason


def test_a_file_is_read_by_its_path_without_any_variable(tmp_path: Path) -> None:
    (tmp_path / "ops").write_bytes(b"whsec_x\n")
    environment = Environment({"file": "of this name"})
    assert files.interpolate(f"${{file:{tmp_path}/ops}}", environment) == "whsec_x"
    assert [*environment.files] == [tmp_path / "ops"]
    assert files.interpolate("${file} ${file:-x}", environment) == "of this name of this name"
    for text, reason in (
        ("${file:ops}", "needs an absolute path"),
        ("${file:}", "needs an absolute path"),
        (f"${{file:{tmp_path}/canary}}", r"the file that \$\{file:...\} names cannot be read: No such file"),
        ("${file:/a\0b}", "cannot be read: no such path"),
    ):
        with pytest.raises(NotSet, match=reason) as refused:
            interpolate(text, {})
        assert "canary" not in str(refused.value)


def test_an_unset_variable_at_a_reload_says_that_a_restart_is_needed() -> None:
    with pytest.raises(NotSet, match=r"a running process does not see .* \$\{file:/path\} instead"):
        files.interpolate("${NEW}", Environment({}, is_running=True))


def test_the_variable_wins_over_the_file() -> None:
    assert interpolate("${KEY}", {"KEY": "set", "KEY_FILE": "/nonexistent"}) == "set"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is not UTF-8 text"),
        ("s3cret".encode("utf-16"), "is UTF-16, not UTF-8: save it as UTF-8"),
        ("s3cret".encode("utf-16-le"), "is UTF-16, not UTF-8: save it as UTF-8"),
        (b"x" * 70_000, "is longer than 65536"),
    ],
)
def test_a_bad_file_is_reported_by_the_name_of_its_variable(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "canary"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotSet, match=f"the file that KEY_FILE names {reason}") as refused:
        interpolate("${KEY}", {"KEY_FILE": str(path)})
    assert "canary" not in str(refused.value)


def test_references_are_replaced_in_all_values_and_in_no_key() -> None:
    refused: list[object] = []
    tree = {"${NAME}": ["${NAME}", {"a": "${UNSET}"}, 1, True]}
    found = interpolate_all(tree, Environment(ENVIRON), lambda key, reason: refused.append((key, reason)))
    assert found == {"${NAME}": ["value", {"a": "${UNSET}"}, 1, True]}
    assert refused == [(("${NAME}", 1, "a"), "the environment has no UNSET and no UNSET_FILE")]
