"""A section whose kind is a recipe is that recipe, with the keys of the section overriding it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher import recipes
from watcher.config.findings import ConfigRefused
from watcher.config.loading import load
from watcher.providers.contract import kinds
from watcher.recipes import laid_over
from watcher.settings import ProviderSettings

ACCOUNT = '\n[[accounts]]\nname = "a"\nprovider = "x"\n'
LTC = """\
[providers.x]
kind = "bitcoin-core"
base_url = "http://127.0.0.1:9332"
basic = "u:p"
requests_per_second = 7

[[providers.x.read]]
id = "LTC"
"""


def settings_of(tmp_path: Path, text: str, variables: Mapping[str, str] | None = None) -> ProviderSettings:
    path = tmp_path / "watcher.toml"
    path.write_text(text)
    return load(path, variables or {}).settings.provider_by_name["x"]


def mistakes_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "watcher.toml"
    path.write_text(text)
    with pytest.raises(ConfigRefused) as refused:
        load(path, {})
    return [f"{found.line}: {found.key}: {found.text}" for found in refused.value.mistakes]


def test_a_section_may_override_one_key_of_one_part(tmp_path: Path) -> None:
    settings: Any = settings_of(tmp_path, LTC + ACCOUNT + 'of = { wallet = "w" }\n')
    assert (settings.kind, settings.requests_per_second) == ("bitcoin-core", 7)
    assert settings.read[0].id == "LTC"
    assert [str(term) for term in settings.read[0].total] == ["trusted", "immature"]
    assert settings.error_classes["-28"] == "transient"


def test_a_missing_variable_of_a_recipe_is_reported_at_its_section(tmp_path: Path) -> None:
    text = '\n[providers.x]\nkind = "stripe"\n'
    (mistake,) = mistakes_of(tmp_path, text + ACCOUNT)
    assert mistake.startswith(
        "2: providers.x.headers.Authorization: the environment has no STRIPE_API_KEY and"
    )


def test_an_overridden_variable_is_not_needed(tmp_path: Path) -> None:
    headers = '{ Authorization = "Bearer ${MINE}", Stripe-Account = "a" }'
    text = f'[providers.x]\nkind = "stripe"\nheaders = {headers}\n'
    settings: Any = settings_of(tmp_path, text + ACCOUNT, {"MINE": "k"})
    sent = {name: value.get_secret_value() for name, value in settings.headers.items()}
    assert sent == {"Authorization": "Bearer k", "Stripe-Account": "a"}


def test_a_reference_in_the_section_is_replaced_once(tmp_path: Path) -> None:
    text = '[providers.x]\nkind = "stripe"\nheaders = { Authorization = "$${MINE}" }\n'
    settings: Any = settings_of(tmp_path, text + ACCOUNT)
    assert settings.headers["Authorization"].get_secret_value() == "${MINE}"


def test_mistakes_point_at_the_users_own_lines(tmp_path: Path) -> None:
    text = LTC + 'tottal = "x"\n\n[providers.y]\nkind = "esplora"\nask = "x"\nheaders = 5\n'
    assert mistakes_of(tmp_path, text + ACCOUNT + 'of = { wallet = "w" }\n') == [
        "9: providers.x.read[0].tottal: unknown key -- did you mean 'total'?",
        "13: providers.y.ask: must be a list",
        "14: providers.y.headers: must be a table",
    ]


def test_an_unknown_kind_lists_kinds_and_recipes_and_says_what_may_be_meant(tmp_path: Path) -> None:
    (mistake,) = mistakes_of(tmp_path, '[providers.x]\nkind = "strip"\n' + ACCOUNT)
    assert mistake.startswith("2: providers.x.kind: unknown kind; the kinds are ")
    assert all(kind in mistake for kind in kinds())
    assert mistake.endswith("-- did you mean 'stripe'?")


def test_no_recipe_has_the_name_of_a_built_in_kind() -> None:
    assert len(set(kinds())) == len(kinds())


TABLES = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.lists(st.dictionaries(st.sampled_from("abc"), inner, max_size=2), min_size=1, max_size=3),
    ),
    max_leaves=8,
)


@given(TABLES, TABLES)
def test_an_override_wins_and_applying_it_twice_changes_nothing(base: Any, over: Any) -> None:
    result = laid_over(base, over)
    assert laid_over(result, over) == result
    assert laid_over(base, base) == base


def test_the_rules_of_overriding_by_example() -> None:
    base = {
        "headers": {"a": "1", "b": "2"},
        "read": [{"id": "X", "total": "t"}, {"id": "Y"}],
        "total": ["p", "q"],
    }
    over = {"headers": {"b": "3"}, "read": [{"id": "Z"}], "total": ["r"], "more": "m"}
    assert laid_over(base, over) == {
        "headers": {"a": "1", "b": "3"},
        "read": [{"id": "Z", "total": "t"}, {"id": "Y"}],
        "total": ["r"],
        "more": "m",
    }
    assert laid_over({"read": [{"id": "X"}]}, {"read": []}) == {"read": []}
    assert laid_over({"read": [{"id": "X"}]}, {"read": [{}, {"id": "Y"}]}) == {
        "read": [{"id": "X"}, {"id": "Y"}]
    }


@pytest.mark.parametrize("name", recipes.names())
def test_a_printed_recipe_works_the_same_under_another_name(name: str, tmp_path: Path) -> None:
    recipe = recipes.recipe(name)
    copied = recipe.text.replace(f"[providers.{name}", "[providers.x")
    copied = copied.replace(f'provider = "{name}"', 'provider = "x"')
    account = copied.partition("[[accounts]]")[2]
    short = f'[providers.x]\nkind = "{name}"\n[[accounts]]{account}'
    variables = dict.fromkeys(re.findall(r"\$\{(\w+)\}", recipe.text), "k")
    one, other = (settings_of(tmp_path, text, variables) for text in (copied, short))
    assert one.model_copy(update={"kind": name}) == other
