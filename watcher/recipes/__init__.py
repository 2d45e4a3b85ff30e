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

    `section` is that section, as it is written. `fields` are those of a balance that it knows, `reads` says
    of what the balances are, and `ran_against` what its answers were compared with.
    """

    name: str
    text: str
    section: Mapping[str, Any]
    fields: tuple[str, ...]
    reads: str
    ran_against: str

    @property
    def kind(self) -> str:
        """The kind that is code, and reads it."""
        return str(self.section["kind"])

    @property
    def beginning(self) -> tuple[str, str, str]:
        """What a configuration that uses it begins with: the comment on top; the section as far as the first
        empty line, which is what a user may have to change, without its kind; the account.
        """
        header = f"[providers.{self.name}]\n"
        comment, _, rest = self.text.partition(header)
        section, _, rest = rest.partition("\n\n")
        account = rest[rest.index("[[accounts]]") :]
        return comment.rstrip(), header + section.replace(f'kind = "{self.kind}"\n', ""), account.rstrip()


@cache
def names() -> tuple[str, ...]:
    """Name all recipes, in the order of the alphabet."""
    return tuple(sorted(path.stem for path in HERE.glob("*.toml")))


@cache
def recipe(name: str) -> Recipe:
    """Read a recipe by its name, one of `names()`."""
    text, _, about = (HERE / f"{name}.toml").read_text(encoding="utf-8").partition("\n[recipe]\n")
    said, section = tomllib.loads(about), tomllib.loads(text)["providers"][name]
    named = {key for part in section.get("read", ()) for key in part} | {*said.get("fields", ())}
    if "pending" in named:
        named |= {"pending_deposit", "pending_withdrawal"}
    fields = tuple(field for field in FIELDS if field in named)
    return Recipe(name, text, section, fields, said["reads"], said["ran_against"])


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
