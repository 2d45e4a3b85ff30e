"""Two answers of a provider are explained as two polls would explain them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import a_balance, a_snapshot
from tests.support.stories import Ended, ended
from watcher.journal.account import Rules
from watcher.preview import kind_of, preview

MK = "0x1456b21890f920110190063921f6bc7f7b027fa6"
TOKENS = [
    {"tokenId": 0, "symbol": "ETH", "name": "Ethereum", "decimals": 18},
    {"tokenId": 1, "symbol": "\x1b[2JLRC", "name": "Loopring", "decimals": 18},
]
ATTO = "0" * 18

Explain = Callable[..., Ended]


def a_row(
    token: int, total: str, locked: str = "0", deposit: str = "0", withdraw: str = "0", account: int = 10110
) -> Any:
    pending = {"deposit": deposit, "withdraw": withdraw}
    return {"accountId": account, "tokenId": token, "total": total, "locked": locked, "pending": pending}


def a_coin(balance: str, **more: str) -> Any:
    return {"currency": MK, "balance": balance, "symbol": "MK", "name": "MetaKeep", **more}


def an_answer(*coins: Any) -> Any:
    return {"status": "SUCCESS", "balances": [*coins]}


@pytest.fixture
def explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Explain:
    def run(before: Any, after: Any, *arguments: object) -> Ended:
        for name, answer in (("before.json", before), ("after.json", after)):
            (tmp_path / name).write_bytes(
                answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            )
        return ended(capsys, "explain", tmp_path / "before.json", tmp_path / "after.json", *arguments)

    return run


def test_a_movement_that_is_emitted_at_once_is_explained(explain: Explain, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    before, after = (
        [a_row(1, "100" + ATTO, deposit="125" + ATTO[1:])],
        [a_row(1, "1125" + ATTO[1:], locked="3")],
    )
    done = explain(before, after, "--tokens", tokens)
    assert (done.code, done.err) == (0, "")
    assert done.lines == [
        "at once               deposit.cleared       12.5 [2JLRC  total +12.5, pending_deposit -12.5",
        "at once               locked.increased      0.000000000000000003 [2JLRC  "
        "locked +0.000000000000000003",
    ]


def test_without_tokens_amounts_are_in_the_smallest_unit_with_a_note(explain: Explain) -> None:
    done = explain([a_row(1, "100")], [a_row(1, "90")])
    assert done.out == "at once               total.decreased       10 1  total -10\n"
    assert done.err == "amounts are in the smallest unit of a token unless --tokens knows it\n"


def test_a_change_pending_confirmation_is_shown_with_its_reason_and_its_end(
    explain: Explain,
) -> None:
    done = explain([a_row(1, "100", deposit="5")], [a_row(1, "100")])
    assert done.lines == [
        "pending confirmation  1  pending_deposit -5: a pending deposit's credit is not seen",
        "after 2 more polls    deposit.dropped       5 1  pending_deposit -5",
    ]
    at_once = explain([a_row(1, "100", deposit="5")], [a_row(1, "100")], "--settle-polls", "0")
    assert at_once.lines == ["at once               deposit.dropped       5 1  pending_deposit -5"]


def test_a_suspect_reading_is_shown_and_emitted_once_a_poll_agrees(explain: Explain) -> None:
    done = explain([a_row(0, "1"), a_row(1, "2")], [a_row(0, "0")])
    assert done.lines == [
        "suspect               0: total fell to zero",
        "suspect               1: the asset disappeared",
        "after 1 more poll     total.decreased       1 0  total -1",
        "after 1 more poll     total.decreased       2 1  total -2",
    ]


def test_a_suddenly_empty_listing_is_followed_for_its_minute(explain: Explain) -> None:
    assert explain([a_row(0, "1")], []).lines == [
        "suspect               0: the listing names nothing, which counts after a minute",
        "after 3 more polls    total.decreased       1 0  total -1",
    ]


def test_a_suspect_reading_that_is_then_pending_is_followed_to_its_end(explain: Explain) -> None:
    done = explain([a_row(1, "5", deposit="5")], [a_row(1, "0")], "--json")
    kinds = [(line["polls"], line["kind"], line.get("type")) for line in done.objects]
    assert kinds == [
        (0, "suspect", None),
        (1, "event", "total.decreased"),
        (1, "pending_confirmation", None),
        (3, "event", "deposit.dropped"),
    ]


def test_withdrawals_are_explained_by_either_model(explain: Explain) -> None:
    before, after = [a_row(1, "100", "10", withdraw="10")], [a_row(1, "90", withdraw="0", locked="0")]
    before[0]["locked"], after[0]["locked"] = "11", "1"
    inside = explain(before, after, "--withdrawals", "inside", "--json").objects
    assert [(line["type"], line["effect"]["total"]) for line in inside] == [("withdrawal.cleared", "-10")]
    outside = explain(before, after, "--json").objects
    assert [line.get("type", line["kind"]) for line in outside][:2] == ["locked.decreased", "total.decreased"]


def test_metakeep_is_known_by_its_shape(explain: Explain) -> None:
    done = explain(an_answer(a_coin("1.12")), an_answer(a_coin("1.5", locked="0.25")), "--json")
    assert [(line["type"], line["amount"]) for line in done.objects] == [
        ("locked.increased", "0.25"),
        ("total.increased", "0.38"),
    ]
    assert done.objects[0]["asset"] == {"id": MK, "symbol": "MK", "name": "MetaKeep", "decimals": None}
    assert done.objects[0]["after"]["pending_deposit"] is None


def test_a_coin_that_was_not_there_before_starts_with_a_baseline(explain: Explain) -> None:
    done = explain(an_answer(), an_answer(a_coin("1")))
    assert done.out == "starts anew           MK: first seen\n"


def test_two_equal_answers_are_said_to_show_no_movement(explain: Explain) -> None:
    assert explain([a_row(1, "1")], [a_row(1, "1")]).out == "nothing moved\n"
    assert explain([a_row(1, "1")], [a_row(1, "1")], "--json").out == ""


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (b"{", [], "before.json is rejected, malformed: the answer is not JSON in UTF-8"),
        (b" <html>", [], "before.json is rejected, malformed: the answer is HTML or XML, not JSON"),
        (
            b'[{"a": 1, "a": 2}]',
            [],
            "before.json is rejected, malformed: row 0: not an object, or a name twice",
        ),
        (
            [a_row(1, "1")],
            [a_row(1, "1e3")],
            "after.json is rejected, malformed: row 0: an amount is not a decimal",
        ),
        (
            [a_row(1, "1")],
            [a_row(1, "1", account=7)],
            "after.json is rejected, malformed: row 0: a balance of another",
        ),
        (
            [a_row(1, "1")],
            {"resultInfo": {"code": 104002}},
            "after.json is rejected, auth: the API key is not valid",
        ),
        (an_answer(), {"status": "UNAUTHORIZED"}, "after.json is rejected, auth: the API key is not valid"),
        (
            an_answer(a_coin("1")),
            an_answer(a_coin("1"), {"currency": "x y"}),
            "after.json is rejected, malformed: row 1",
        ),
        (an_answer(a_coin("1")), [a_row(1, "1")], "after.json is rejected, malformed: answered 200"),
        ([], an_answer(), "after.json is rejected, malformed: "),
    ],
)
def test_an_answer_that_a_poll_would_reject_is_rejected_with_its_reason(
    explain: Explain, before: Any, after: Any, shown: str
) -> None:
    done = explain(before, after)
    assert done.code == 1
    assert done.out.startswith(shown)
    (line,) = explain(before, after, "--json").objects
    assert (line["kind"], line["file"]) == ("rejected", shown.split()[0])


def test_an_invalid_list_of_tokens_is_refused(explain: Explain, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("[]")
    done = explain([a_row(1, "1")], [a_row(1, "2")], "--tokens", tmp_path / "tokens.json")
    assert (done.code, done.out) == (1, "tokens.json is rejected, malformed: not a list of tokens\n")


def test_an_ambiguous_file_needs_its_kind(explain: Explain) -> None:
    done = explain({}, {})
    assert done.code == 2
    assert "say --kind" in done.err
    assert explain({}, {}, "--kind", "metakeep").code == 1


def test_a_missing_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, "explain", "/nowhere/a", "/nowhere/b").code == 2


@pytest.mark.parametrize("answer", [None, 1, "x", {}, {"code": 1}, {"balance": []}])
def test_no_kind_is_guessed_without_evidence(answer: Any) -> None:
    assert kind_of(answer) is None


def test_a_preview_ends_with_nothing_pending_or_suspect() -> None:
    before, after = a_snapshot(ETH=a_balance("5", pending_deposit="5")), a_snapshot(ETH="0")
    for settle_polls in range(5):
        rounds = [*preview(before, after, Rules("outside", settle_polls))]
        assert not rounds[-1].advance.pending_confirmation
        assert not rounds[-1].advance.suspect


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    names = ("audit", "balances", "events", "explain", "schema", "status")
    modules = ", ".join(f"watcher.commands.{name}" for name in names)
    heavy = "{'pydantic', 'redis', 'orjson', 'aiohttp'} & set(sys.modules)"
    program = f"import sys, {modules}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
