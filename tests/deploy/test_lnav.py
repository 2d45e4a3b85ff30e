"""The lnav format knows every field and level of a log line, and lnav reads it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from watcher.observe.catalogue import EVENTS, FIELD_MEANINGS
from watcher.observe.log import LEVELS

FILE = Path(__file__).parents[2] / "deploy" / "watcher.lnav.json"
FORMAT = json.loads(FILE.read_text())["watcher_log"]
LINES = [
    '{"timestamp":"2026-11-20T14:03:05.120Z","level":"info","event":"poll.finished","account":"treasury",'
    '"status":200,"duration_ms":12,"unchanged":true}',
    '{"timestamp":"2026-11-20T14:03:06.120Z","level":"warning","event":"delivery.dead","account":"treasury",'
    '"event_id":"evt_1","reason":"no"}',
]


def lnav(folder: Path, *arguments: str) -> str:
    program = shutil.which("lnav")
    if program is None:
        pytest.skip("no lnav on this machine")
    (folder / "formats" / "watcher").mkdir(parents=True)
    (folder / "formats" / "watcher" / FILE.name).write_bytes(FILE.read_bytes())
    environ = {"HOME": str(folder), "PATH": "/usr/bin", "TERM": "dumb", "TMPDIR": str(folder)}
    done = subprocess.run(
        [program, "-I", str(folder), *arguments],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_every_field_is_known_with_its_meaning() -> None:
    stated = {name: value["description"] for name, value in FORMAT["value"].items() if name != "event"}
    assert stated == FIELD_MEANINGS
    assert FORMAT["file-type"] == "json"


def test_numbers_are_numbers() -> None:
    kinds = {name: value["kind"] for name, value in FORMAT["value"].items()}
    assert {name for name in kinds if name.endswith("_ms") and kinds[name] != "integer"} == set()
    assert set(kinds.values()) <= {"string", "integer", "float", "boolean", "json"}
    counts = {
        name for name, meaning in FIELD_MEANINGS.items() if meaning.startswith(("how many", "number of"))
    }
    assert {kinds[name] for name in counts} == {"integer"}


def test_every_level_is_known() -> None:
    assert {*FORMAT["level"]} == {line.level for line in EVENTS.values()} | {"debug"} == {*LEVELS}
    for field in ("timestamp", "level", "body"):
        assert FORMAT[f"{field}-field"] in ("timestamp", "level", "event")


def test_lnav_accepts_the_format(tmp_path: Path) -> None:
    assert lnav(tmp_path, "-C") == ""


def test_lnav_parses_lines_with_the_format(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{line}\n" for line in LINES))
    query = ";SELECT log_level, account, status, duration_ms, event_id FROM watcher_log"
    stated = lnav(tmp_path, "-n", "-q", "-c", query, "-c", ":write-json-to -", str(tmp_path / "log"))
    assert [[*row.values()] for row in json.loads(stated)] == [
        ["info", "treasury", 200, 12, None],
        ["warning", "treasury", None, None, "evt_1"],
    ]
