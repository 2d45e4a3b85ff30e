"""Recipes: APIs described as data for kind `http`, one file for each, which a section of a configuration
names as its kind.

Refuses to check them: they are read as a user's own section is, and tests do.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
FIELDS = ("total", "locked", "pending_deposit", "pending_withdrawal")


class Recipe(NamedTuple):
    """One recipe. `text` is a configuration: a provider's section of its name, and an example of an account.

    `section` is that section, as it is written, `kind` what reads it. `reads` says of what the balances are,
    `ran_against` what its answers were compared with.
    """

    name: str
    text: str
    section: Mapping[str, Any]
    reads: str
    ran_against: str

    @property
    def kind(self) -> str:
        return str(self.section["kind"])

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a balance that it knows. A signed `pending` is both."""
        named = {key for part in self.section["read"] for key in part}
        if "pending" in named:
            named |= {"pending_deposit", "pending_withdrawal"}
        return tuple(field for field in FIELDS if field in named)

    @property
    def paragraphs(self) -> tuple[str, str, str]:
        """What a configuration that uses it begins with: the comment on top, the first lines of the section,
        which are the user's, and the account. Without `kind`: the name of the section is it."""
        head, section, *_ = self.text.partition(f"[providers.{self.name}]")
        yours = self.text.partition(section)[2].partition("\n\n")[0].replace('\nkind = "http"', "")
        return (
            head.rstrip(),
            section + yours,
            "[[accounts]]" + self.text.partition("[[accounts]]")[2].rstrip(),
        )


@cache
def names() -> tuple[str, ...]:
    """Name all recipes, in the order of the alphabet."""
    return tuple(sorted(path.stem for path in HERE.glob("*.toml")))


@cache
def recipe(name: str) -> Recipe:
    """Read a recipe by its name, one of `names()`."""
    text, _, about = (HERE / f"{name}.toml").read_text(encoding="utf-8").partition("\n[recipe]\n")
    said = tomllib.loads(about)
    section = tomllib.loads(text)["providers"][name]
    return Recipe(name, text, section, said["reads"], said["ran_against"])


def laid_over(base: Any, over: Any) -> Any:
    """Lay what a user wrote over what a recipe says: tables key by key, lists of tables item by item. Of
    anything else what the user wrote stands alone.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {**base, **{key: laid_over(base.get(key), value) for key, value in over.items()}}
    if _is_tables(base) and _is_tables(over):
        longer = base if len(base) > len(over) else over
        both = [laid_over(one, other) for one, other in zip(base, over, strict=False)]
        return [*both, *longer[len(both) :]]
    return over


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
