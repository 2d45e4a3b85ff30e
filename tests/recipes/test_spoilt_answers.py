"""A valid answer damaged in any one place: no recipe reads zero or another amount from it.

Without sockets: what the client does with an answer that is none is in tests/providers/test_odd_answers.py.
"""

import re
from typing import Any

import pytest

from tests.recipes.test_recipes import NAMES, bodies, read
from tests.support.odd_answers import Odd, complaint, oddities
from watcher.preview import parsed
from watcher.providers.contract import Provider, Rejected
from watcher.recipes import recipe
from watcher.snapshot import Snapshot

ID_BY_RECIPE = {
    "adyen": "balances[].currency",
    "bitgo": "coin",
    "blockfrost": "amount[].unit",
    "solana": "result.value[].account.data.parsed.info.mint",
    "stripe": "[].currency",
    "wise": "[].currency",
}
"""Where another text is another asset, of which the answer then says so much."""

LISTS_BY_RECIPE = {
    "adyen": ("balances",),
    "blockfrost": ("amount",),
    "solana": ("result.value",),
    "stripe": ("available", "connect_reserved", "pending"),
    "tron": ("frozenV2", "unfrozenV2"),
    "wise": ("",),
}
"""Where what is not listed is not there. Of what is suddenly gone the journal asks again."""

OMITTED_BY_RECIPE = {
    "adyen": r"balances\[\]\.pending",
    "stripe": r"connect_reserved",
    "tron": r"balance|account_resource|.*_energy|.*_bandwidth|frozenV2(\[\](\.amount)?)?|unfrozenV2",
}
"""What is left out where it is zero."""


def is_meant(name: str, odd: Odd) -> bool:
    """Say whether a spoilt answer is a good one that says something else."""
    lists = LISTS_BY_RECIPE.get(name, ())
    if odd.place in lists and odd.value in ([], "[]"):
        return True
    if odd.place.removesuffix("[]") in lists and odd.kind == "row missing":
        return True
    if name in ID_BY_RECIPE and odd.place.endswith(ID_BY_RECIPE[name]) and odd.kind == "value":
        return isinstance(odd.value, str) and odd.value not in ("", "[it]", "{it}")
    is_left_out = re.fullmatch(OMITTED_BY_RECIPE.get(name, "-"), odd.place) is not None
    if name == "stripe" and odd.kind == "value":
        return is_left_out and odd.value is None  # documented
    if name == "tron" and odd.kind == "row twice":
        return odd.place == "unfrozenV2[]"  # as after two of the same in one block
    return is_left_out and (odd.kind in ("missing", "row missing") or odd.value in ({}, "{it}"))


def read_with(provider: Provider, account: Any, answers: list[Any], number: int, body: bytes) -> Any:
    try:
        answer = parsed(body)
        if refused := provider.refusal(200, answer):
            return refused
        return provider.read(account, [*answers[:number], answer, *answers[number + 1 :]], {})
    except Rejected as rejected:
        return rejected


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_answer_is_never_misread(name: str) -> None:
    provider, account = read(name)
    good = bodies(name, "answer")
    answers = [parsed(body) for body in good]
    whole = provider.read(account, answers, {})
    assert isinstance(whole, Snapshot)
    complaints: list[str] = []
    for number, body in enumerate(good):
        for odd in oddities(body):
            if odd.place.removesuffix("[]").rpartition(".")[2] not in recipe(name).text:
                continue  # no path leads there
            wrong = complaint(odd, read_with(provider, account, answers, number, odd.body), whole)
            if wrong and not is_meant(name, odd):
                complaints.append(f"answer {number}, {odd}: {wrong}")
    assert not complaints, "\n".join(complaints[:40])
