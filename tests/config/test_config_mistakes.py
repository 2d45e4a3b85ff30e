"""Every file in bad/ ends with the messages that it must be refused with, word for word, after `#! `."""

from pathlib import Path

import pytest

from watcher.config.findings import ConfigRefused
from watcher.config.loading import load
from watcher.providers.contract import PLACE_BY_KIND
from watcher.recipes import names

BAD = Path(__file__).parent / "bad"
ENVIRON = {
    "SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "UNREADABLE_FILE": "/nonexistent/file",
}
KINDS = f"{', '.join(PLACE_BY_KIND)}, and the recipes {', '.join(names())}"
"""In place of {kinds}: they become more."""


def mistakes_in(path: Path) -> list[str]:
    with pytest.raises(ConfigRefused) as refused:
        load(path, ENVIRON)
    return [str(mistake) for mistake in refused.value.mistakes]


@pytest.mark.parametrize("name", sorted(path.name for path in BAD.glob("*.toml")))
def test_every_mistake_is_reported_at_once_with_its_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    lines = Path(name).read_text(errors="replace").splitlines()
    expected = [
        line.removeprefix("#! ").replace("{kinds}", KINDS) for line in lines if line.startswith("#! ")
    ]
    assert expected
    assert mistakes_in(Path(name)) == expected


def test_no_message_repeats_a_value_that_may_be_secret() -> None:
    for path in BAD.glob("*.toml"):
        for message in mistakes_in(path):
            assert "canary" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = " + "[" * 10_000, "not valid TOML: nested too deeply"),
        ("[[accounts]]\n" + "a." * 3000 + "a = 1", "not valid TOML: nested too deeply"),
        ("a = " + "9" * 5_000, "not valid TOML: not understood"),
        ('"\\u001b[31m" = 1', 'f.toml:1: "\\u001b[31m": unknown key'),
        (f'"{"k" * 500}" = 1', f'f.toml:1: "{"k" * 64}": unknown key'),
    ],
)
def test_hostile_text_is_an_ordinary_mistake(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text)
    (message,) = mistakes_in(path)
    assert message.endswith(expected)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert mistakes_in(tmp_path / "no.toml") == [
        f"{tmp_path}/no.toml: cannot be read: No such file or directory"
    ]
    assert mistakes_in(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_no_file_at_all_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "watcher.environment.Environment.PLACES", (Path("watcher.toml"), tmp_path / "etc.toml")
    )
    with pytest.raises(ConfigRefused) as refused:
        load(None, {})
    assert str(refused.value) == (
        f"watcher: no configuration at watcher.toml or {tmp_path}/etc.toml; "
        "`watcher init` writes one to begin with"
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"REDIS_URL": "localhost:6379"},
            "REDIS_URL: must be `embedded` or begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
        ),
        (
            {"REDIS_URL_FILE": "/nonexistent"},
            "REDIS_URL: the file that REDIS_URL_FILE names cannot be read: No such",
        ),
        ({"LOG_LEVEL": "chatty"}, "LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error'"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT: must be 'auto', 'json' or 'pretty'"),
        *(
            ({"LOG_PREFIX": odd}, "LOG_PREFIX: must be up to 32 letters, digits, '_', '-' or '.'")
            for odd in ("_w", "a b", "é", "w" * 33, "w\n", '"')
        ),
    ],
)
def test_a_mistake_in_the_environment_is_not_blamed_on_the_file(
    tmp_path: Path, environ: dict[str, str], expected: str
) -> None:
    path = tmp_path / "f.toml"
    path.write_text('[redis]\nurl = "embedded"\n')
    with pytest.raises(ConfigRefused) as refused:
        load(path, environ)
    assert str(refused.value).startswith(f"environment: {expected}")
