"""`watcher recipes`, and what `check --recipe` makes of one."""

import json
import re
from pathlib import Path

import pytest

from tests.support.stories import Ended, ended
from watcher import recipes
from watcher.recipes import HERE

SAMPLES = HERE / "samples"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    return ended(capsys, *arguments)


def answers(name: str, *kinds: str) -> list[object]:
    paths = [path for kind in kinds for path in sorted((SAMPLES / name).glob(f"{kind}-*.json"))]
    return [argument for path in paths for argument in ("--answer", path)]


def test_recipes_are_listed_with_their_fields_and_what_they_were_tested_against(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = run(capsys, "recipes")
    assert done.lines[0].split() == ["recipe", "locked", "pending", "ran", "against", "reads"]
    assert [line.split()[0] for line in done.lines[1:]] == [*recipes.names()]
    listed = {line["name"]: line for line in run(capsys, "recipes", "--json").objects}
    assert listed["bitcoin-core"]["fields"] == ["total", "locked", "pending_deposit"]
    assert listed["bitcoin-core"]["ran_against"].startswith("a real node")
    assert listed["esplora"]["fields"] == ["total", "pending_deposit", "pending_withdrawal"]


def test_a_recipe_is_printed_as_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "recipes", "lnd")
    assert done.out.rstrip() == recipes.recipe("lnd").text.rstrip()
    assert "[recipe]" not in done.out
    wrong = run(capsys, "recipes", "lnt")
    assert (wrong.code, wrong.err) == (2, "Error: no recipe is called 'lnt'; did you mean 'lnd'?\n")


def test_answers_are_shown_asset_by_asset_and_two_polls_as_events(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "check", "--recipe", "bitcoin-core", *answers("bitcoin-core", "answer", "later"))
    assert (done.code, done.err) == (0, "")
    assert [line.split() for line in done.lines if line.startswith("BTC")] == [
        ["BTC", "62.34567891", "50", "0.00000001", "-", "-"],
        ["BTC", "62.34567892", "50", "0", "-", "-"],
    ]
    assert done.lines[-1].split()[:4] == ["at", "once", "deposit.cleared", "0.00000001"]


def test_recorded_answers_are_shown_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "check", "--json", "--recipe", "esplora", *answers("esplora", "answer", "later"))
    assert [line["kind"] for line in done.objects] == ["row", "row", "event"]
    assert done.objects[0]["total"] == "20999999.99700001"
    assert done.objects[0]["asset"]["decimals"] == 8
    assert done.objects[2]["type"] == "withdrawal.cleared"


def test_a_poll_of_several_answers_says_which_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "check", "--recipe", "lnd", "--answer", SAMPLES / "lnd" / "answer-1.json")
    assert done.code == 2
    assert "poll 1 takes 1 more --answer, of what it asks next:\n  GET /v1/balance/channels\n" in done.err


def test_without_answers_it_shows_the_requests_and_no_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETHERSCAN_API_KEY", "the-secret")
    done = run(capsys, "check", "--recipe", "etherscan")
    assert done.out.startswith("GET /v2/api?action=balance&address=0x")
    assert "the-secret" not in done.out


def test_a_key_written_into_a_file_is_not_shown_either(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipes.recipe("etherscan").text.replace("${ETHERSCAN_API_KEY}", "the-secret"))
    done = run(capsys, "check", "--recipe", path)
    assert "&apikey=key&" in done.out
    assert "the-secret" not in done.out + done.err


def test_a_rejection_is_shown_with_its_error_class(capsys: pytest.CaptureFixture[str]) -> None:
    sample = SAMPLES / "wise" / "answer-1.json"
    done = run(capsys, "check", "--recipe", "stripe", "--answer", sample)
    assert done.code == 1
    assert done.out.startswith("poll 1 is rejected, malformed: read[0]: rows: 'available' ")
    (line,) = run(capsys, "check", "--json", "--recipe", "stripe", "--answer", sample).objects
    assert (line["kind"], line["poll"], line["error_class"]) == ("rejected", 1, "malformed")


def test_a_users_own_file_is_tried_and_its_mistakes_are_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipes.recipe("lnbits").text.replace("decimals = 11", "decimals = 8"))
    done = run(capsys, "check", "--recipe", path, *answers("lnbits", "answer"))
    assert done.lines[-1].split() == ["BTC", "1234.56789012", "0", "-", "-", "8"]
    path.write_text(recipes.recipe("lnbits").text.replace("total =", "totl ="))
    wrong = run(capsys, "check", "--recipe", path)
    assert wrong.code == 78
    assert "mine.toml:" in wrong.err
    assert "did you mean 'total'?" in wrong.err
    path.write_text("[providers.esplora]\n")
    empty = run(capsys, "check", "--recipe", path)
    assert (empty.code, "has no [[accounts]]" in empty.err) == (1, True)


def test_the_example_with_every_key_is_followed_answer_by_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (HERE / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "[providers.bank]" in block)
    path = tmp_path / "mine.toml"
    path.write_text(f'{example}\n[[accounts]]\nname = "a"\nprovider = "bank"\nof = {{ account = 7 }}\n')
    eur = '{"currency": "EUR", "booked": 100, "held": 5, "incoming": -3}'
    texts = [
        f'{{"id": 7, "block": 12, "owner": {{"id": "o1"}}, "balances": [{eur}]}}',
        '{"pots": [{"id": 1, "currency": "GBP", "amount": 1.25, "ticker": "£"}], "next": "c2"}',
        '{"pots": [{"id": 3, "currency": "GBP", "amount": 1e-2, "ticker": "£"}], "next": null}',
    ]
    given: list[object] = []
    asks = ["GET /accounts/7?apikey=key", 'POST /pots {"owner":"o1"}', 'POST /pots?cursor=c2 {"owner":"o1"}']
    for number, (text, ask) in enumerate(zip(texts, asks, strict=True)):
        done = run(capsys, "check", "--recipe", path, *given)
        assert (done.err or done.out).splitlines()[-1].strip() == ask
        (tmp_path / f"{number}.json").write_text(text)
        given += ["--answer", tmp_path / f"{number}.json"]
    rows = run(capsys, "check", "--recipe", path, *given).lines[2:4]
    assert rows[0].split() == ["EUR", "1.05", "0.05", "0", "0.03", "2"]
    assert rows[1].split() == ["£", "GBP", "1.26", "0", "0", "0", "-"]


def test_an_argument_that_is_neither_file_nor_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "check", "--recipe", "stripee")
    assert done.err == "Error: no recipe, and no file, is called 'stripee'; did you mean 'stripe'?\n"
    alone = run(capsys, "check", "--answer", SAMPLES / "wise" / "answer-1.json")
    assert (alone.code, "--answer needs --recipe" in alone.err) == (2, True)


def test_a_next_page_path_that_finds_nothing_is_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A misspelled one makes the first page pass for all; null says that it was the last."""
    recipe, answer = tmp_path / "bank.toml", tmp_path / "answer.json"
    recipe.write_text(
        '[providers.bank]\nkind = "http"\nbase_url = "https://bank.example.com"\n'
        '[[providers.bank.ask]]\npath = "/"\n'
        'next = { cursor = "next", query = "after", more = "meta.more" }\n'
        '[[providers.bank.ask]]\npath = "/pots"\n'
        '[[providers.bank.read]]\nid = "EUR"\ntotal = "held"\n'
        '[[accounts]]\nname = "main"\nprovider = "bank"\n'
    )
    answer.write_text('{"held": "1", "meta": {"more": false}}')
    note = "note: ask[0].next.cursor: 'next' finds nothing, so there is no further page. Is that so?\n"
    for text, said in ((answer.read_text(), note), ('{"held": "1", "next": null, "meta": {"more": 0}}', "")):
        answer.write_text(text)
        done = run(capsys, "check", "--recipe", recipe, "--answer", answer, "--answer", answer)
        assert (done.code, done.err) == (0, said)
    recipe.write_text(recipe.read_text().replace('kind = "http"', 'kind = "http"\nmore = "has_more"'))
    done = run(capsys, "check", "--recipe", recipe, "--answer", answer, "--answer", answer)
    assert done.err.startswith("note: more: 'has_more' finds nothing, ")


def test_a_kind_that_is_code_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "recipes", "evm")
    assert done.code == 2
    assert "'evm' is code, not a recipe: `watcher init --provider evm` writes a section" in done.err


def test_a_poll_that_a_worker_would_reject_is_rejected_here_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Whose height is lower than that of the one before."""
    recipe = tmp_path / "node.toml"
    recipe.write_text(
        '[providers.node]\nkind = "http"\nbase_url = "https://node.example.com"\nheight = "at"\n'
        '[[providers.node.ask]]\npath = "/"\n'
        '[[providers.node.read]]\nid = "BTC"\ntotal = "held"\n'
        '[[accounts]]\nname = "wallet"\nprovider = "node"\n'
    )
    for height in (8, 9):
        (tmp_path / f"{height}.json").write_text(json.dumps({"held": "1", "at": height}))
    done = run(
        capsys, "check", "--recipe", recipe, "--answer", tmp_path / "9.json", "--answer", tmp_path / "8.json"
    )
    assert (done.code, done.lines[-1]) == (
        1,
        "poll 2 is rejected, transient: read at height 8, where the last one was read at 9",
    )
