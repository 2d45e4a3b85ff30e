"""The scripts as text: each documented, loaded by name, without what servers forbid."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

import watcher.store
from watcher.store.pipe import load_script

ROOM = Path(str(files(watcher.store)))
TEXT_BY_NAME = {path.stem: path.read_text("utf-8") for path in sorted((ROOM / "scripts").glob("*.lua"))}
PARTS = {path.stem: path.read_text("utf-8") for path in sorted((ROOM / "scripts" / "parts").glob("*.lua"))}
"""What stands in front of several scripts, or around them: functions, whose first parameters are keys."""

every_script = pytest.mark.parametrize("name", TEXT_BY_NAME)

KEYWORDS = {
    *("and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local"),
    *("nil", "not", "or", "repeat", "return", "then", "true", "until", "while"),
}
PROVIDED = {
    *("redis", "KEYS", "ARGV", "string", "table", "math", "ipairs", "tonumber", "tostring", "type", "unpack"),
    "pcall",
}
READS = {"EXISTS", "HGET", "HLEN", "HMGET", "TIME", "XLEN", "XRANGE", "XREVRANGE", "ZCARD", "ZSCORE"} | {
    *("alone_in", "empty_in", "length_of", "waiting_in")  # of queues
}
LISTS = {"list", "queue"}
"""What names a key where a script gathers several of a kind."""
FORBIDDEN = (
    "cjson",
    "cmsgpack",
    "struct",
    "bit",
    "LMPOP",
    "ZMPOP",
)


def header(text: str) -> str:
    lines = text.splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("--"))])


def code(text: str) -> str:
    """A script without its comments and the contents of its strings."""
    return re.sub(r"'[^'\n]*'", "''", re.sub(r"--[^\n]*", "", text))


def parts_of(name: str) -> list[str]:
    """Name the parts that stand in front of a script."""
    used = re.search(r"^-- uses (.+)$", TEXT_BY_NAME[name], re.M)
    return used[1].split(", ") if used else []


def whole(name: str) -> str:
    """A script as it is sent."""
    return load_script(name).text


def described(text: str, part: str) -> str:
    """What the header says of KEYS or ARGV: up to the next of its parts."""
    found = re.search(rf"^-- {part} (.*?)(?=^-- (?:KEYS|ARGV|returns)|\Z)", header(text), re.M | re.S)
    assert found, f"the header does not describe {part}"
    return found[1]


def test_scripts_are_found() -> None:
    assert {"claim", "commit", "settle"} <= TEXT_BY_NAME.keys()


@every_script
def test_a_script_documents_its_purpose_keys_arguments_and_reply(name: str) -> None:
    lines = header(TEXT_BY_NAME[name]).splitlines()
    assert re.match(r"-- [A-Z].{20,}", lines[0]), "the first line says what the script does"
    parts = [match[1] for line in lines if (match := re.match(r"-- (KEYS|ARGV|returns) ", line))]
    assert parts in (["KEYS", "ARGV", "returns"], ["KEYS", "returns"])


@every_script
@pytest.mark.parametrize("part", ["KEYS", "ARGV"])
def test_every_key_and_argument_that_a_script_uses_is_documented(name: str, part: str) -> None:
    text = TEXT_BY_NAME[name]
    if part not in code(text):
        return
    used = {int(number) for number in re.findall(rf"\b{part}\[([0-9]+)", code(text))}
    said = [int(number) for number in re.findall(r"(?:^|\s)([0-9]+)(?:\.\.)? ", described(text, part))]
    assert used <= set(said)
    assert said == list(range(1, len(said) + 1)), "numbered from 1, without a gap"


@every_script
def test_a_script_is_loaded_under_its_own_name_and_by_one_writer(name: str) -> None:
    loads = [
        (path.name, match[1])
        for path in ROOM.glob("*.py")
        for match in re.finditer(rf'^(\w+) = load_script\("{name}"\)$', path.read_text("utf-8"), re.M)
    ]
    assert {constant for _, constant in loads} == {f"_{name.upper()}"}
    commands = set(re.findall(r"redis\.p?call\(\s*'(\w+)'", TEXT_BY_NAME[name]))
    commands |= {call for call in re.findall(r"\b(\w+)\(", code(TEXT_BY_NAME[name])) if call in KEYS_OF}
    assert len(loads) == 1 or commands <= READS, f"{name} writes, and not from one place alone"


@every_script
def test_a_script_with_groups_is_wrapped_by_the_part_that_repeats_it(name: str) -> None:
    if "groups" not in parts_of(name):
        assert whole(name).endswith(TEXT_BY_NAME[name])
        return
    before, inside, after = whole(name).partition(TEXT_BY_NAME[name])
    assert before.endswith("local function take(KEYS, ARGV)\n")
    assert inside
    assert after.startswith("end\n")


def test_every_script_that_is_loaded_exists() -> None:
    text = "\n".join(path.read_text("utf-8") for path in ROOM.glob("*.py"))
    assert set(re.findall(r'load_script\("(\w+)"\)', text)) == TEXT_BY_NAME.keys()


@every_script
def test_a_script_uses_only_features_of_every_supported_server(name: str) -> None:
    text = code(whole(name))
    assert not text.startswith("#!")
    assert set(re.findall(r"\bredis\.(\w+)", text)) <= {"call", "pcall"}, (
        "other functions came later than 6.2"
    )
    for word in FORBIDDEN:
        assert not re.search(rf"\b{re.escape(word)}\b", text)


@every_script
def test_a_script_has_no_globals(name: str) -> None:
    text = code(whole(name))
    lists = re.findall(r"\bfunction\s+\w*\(([^)]*)\)", text) + re.findall(r"\bfunction\s+(\w+)", text)
    lists += re.findall(r"\blocal\s+([\w\s,]+?)(?==|$|\bin\b)", text, re.M) + re.findall(
        r"\bfor\s+([\w\s,]+?)(?:=|\bin\b)", text
    )
    own = {name.strip() for names in lists for name in names.split(",")}
    words = set(re.findall(r"(?<![\w.:])[A-Za-z_]\w*", text))
    assert words - KEYWORDS - PROVIDED - own == set()


def calls(text: str) -> list[tuple[str, str]]:
    """Each command that is called, and the name of its first argument."""
    return re.findall(r"redis\.p?call\(\s*'(\w+)'\s*(?:,\s*(?:unpack\()?([A-Za-z_]+))?", text)


def keys_of_functions() -> dict[str, list[int]]:
    """By function of a part, which of its parameters are keys: those that it, or what it calls, touches."""
    found: dict[str, list[int]] = {}
    for text in [*PARTS.values()] * 2:  # a part may call what comes in another
        for each in re.finditer(r"^local function (\w+)\(([^)]*)\)(.*?)^end$", text, re.M | re.S):
            name, parameters, body = each[1], each[2].split(", "), each[3]
            touched = {first for command, first in calls(body) if command != "TIME"}
            for callee, places in found.items():
                for arguments in re.findall(rf"\b{callee}\(([^()]*)", body):
                    touched |= {arguments.split(", ")[place] for place in places}
            assert touched <= {*parameters}, f"{name} touches a key that it was not given"
            found[name] = [parameters.index(key) for key in parameters if key in touched]
    return found


KEYS_OF = {name: places for name, places in keys_of_functions().items() if places}


@every_script
def test_a_script_calls_only_commands_with_declared_keys(name: str) -> None:
    text = TEXT_BY_NAME[name]
    declared, others = {"KEYS"}, set[str]()
    gathered = {each for each, of in re.findall(r"\b(\w+)\[#\1 \+ 1\] = (\w+)$", text, re.M) if of in LISTS}
    for names, value in re.findall(r"\blocal ([\w, ]+?) = (\S+)", text):
        is_declared = value.startswith(("KEYS[", "unpack(KEYS,", "unpack(KEYS)", "{unpack(KEYS,"))
        is_declared = is_declared or value.partition("[")[0] in gathered
        (declared if is_declared else others).update(re.findall(r"\w+", names))
    declared, others = declared | gathered, others - gathered
    assert not declared & others, "what names a key names nothing else"
    assert calls(whole(name))
    for command, first in calls(text):
        assert first in declared or (command, first) == ("TIME", ""), f"{command} on an undeclared key"
    for function, places in KEYS_OF.items():
        for arguments in re.findall(rf"\b{function}\(([^()]*)", code(text)):
            given = arguments.split(", ")
            keys = {given[place].strip("{}") for place in places}
            assert keys <= declared, f"{function} on an undeclared key"


@every_script
def test_a_script_declares_the_parts_that_it_calls(name: str) -> None:
    own = {part: set(re.findall(r"^local function (\w+)", text, re.M)) for part, text in PARTS.items()}
    texts = [TEXT_BY_NAME[name], *(PARTS[part] for part in parts_of(name))]
    called = set(re.findall(r"\b(\w+)\(", code("\n".join(texts))))
    assert {part for part, functions in own.items() if functions & called} == {*parts_of(name)}


def test_the_functions_of_parts_that_touch_keys_are_found() -> None:
    of_queues = {"alone_in", "append", "empty_in", "length_of", "take_oldest", "waiting_in"}
    others = {
        "hold",
        "drop",
        "drop_all",
        "grow",
        "check_types",
        "bury",
        "note_dead",
        "note_given_up",
        "next_change",
        "note_change",
    }
    assert of_queues | others == KEYS_OF.keys()
    assert KEYS_OF["bury"] == [0, 1, 2, 3]
