"""The tables in the texts for people match the code. The blocks are in test_blocks.py."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

import watcher
from tests.docs.blocks import texts_in
from watcher import recipes
from watcher.commands.recipes import known
from watcher.config.subscriptions import OWNERS
from watcher.delivery.formats.sentences import SLOTS
from watcher.delivery.formats.services import SERVICES
from watcher.observe.catalogue import EVENTS
from watcher.providers.contract import PLACE_BY_KIND, kinds
from watcher.providers.declared import Ask, HttpSettings, Next, Part
from watcher.providers.evm import EvmSettings
from watcher.providers.exchange import REVIEWED, ExchangeAccount, ExchangeSettings
from watcher.providers.loopring import LoopringAccount
from watcher.providers.metakeep import MetaKeepAccount, MetaKeepSettings
from watcher.settings import (
    CHANGE_EVENTS,
    PER_SECOND_BY_FORMAT,
    SERVICE_EVENTS,
    ApiSettings,
    EgressSettings,
    KeyedSettings,
    LogSettings,
    ProviderSettings,
    RedisSettings,
    Section,
    SubscriptionSettings,
    ThresholdSettings,
    WorkerSettings,
)

ROOT = Path(watcher.__file__).parents[1]
FIELDS_BY_TABLE: dict[str, tuple[type[Section], ...]] = {
    "[redis]": (RedisSettings,),
    "[worker]": (WorkerSettings,),
    "[log]": (LogSettings,),
    "[egress]": (EgressSettings,),
    "[api]": (ApiSettings,),
    "[providers.NAME]": (ProviderSettings, MetaKeepSettings),
    'kind = "http"': (HttpSettings,),
    "[[providers.NAME.ask]]": (Ask,),
    "[providers.NAME.ask.next]": (Next,),
    "[[providers.NAME.read]]": (Part,),
    "[[accounts]]": (LoopringAccount, MetaKeepAccount),
    "[[subscriptions]]": (SubscriptionSettings,),
    "[[subscriptions.thresholds]]": (ThresholdSettings,),
}


def rows_after(header: str) -> list[list[str]]:
    """The cells of the one table whose first header cell is `header`."""
    lines = texts_in().splitlines()
    heads = (i for i, line in enumerate(lines) if line.startswith("|---"))
    (start,) = (i - 1 for i in heads if lines[i - 1].startswith(f"| {header} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_every_format_is_in_its_table_with_its_settings_and_rate() -> None:
    rows = {cells[0].strip("`"): cells for cells in rows_after("`format`") if cells[0].startswith("`")}
    rates: dict[str, float | None] = dict(PER_SECOND_BY_FORMAT.items())
    assert rows.keys() == SERVICES.keys()
    for name, (_, _, needs, per_second, longest) in rows.items():
        assert float(per_second) == rates[name]
        assert longest.startswith(f"{SERVICES[name].limit:,}") or name == "teams"
        assert [key for key, owner in OWNERS.items() if owner == name] == re.findall(r"^`(\w+)`$", needs)
    slots = texts_in("deploy/").partition("its slots are ")[2].partition(". Where")[0]
    assert tuple(re.findall(r"`(\w+)`", slots)) == SLOTS


@pytest.mark.parametrize(("table", "models"), FIELDS_BY_TABLE.items())
def test_every_setting_is_in_its_table_with_its_description(
    table: str, models: tuple[type[Section], ...]
) -> None:
    stated = {cells[0].strip("`"): cells[-1] for cells in rows_after(f"`{table}`")}
    fields = [field for model in models for field in model.model_fields.items()]
    meant = {field.alias or name: field.description for name, field in fields}
    if models == (HttpSettings,):
        meant = {name: text for name, text in meant.items() if name not in ProviderSettings.model_fields}
    if table == "[providers.NAME]":
        del meant["name"]
        meant["requests_per_second"] = ProviderSettings.model_fields["requests_per_second"].description
    assert stated == meant


def test_the_table_of_exchanges_lists_the_reviewed_ones() -> None:
    stated = [(cells[0].strip("`"), cells[1], cells[4] == "zero") for cells in rows_after("exchange")]
    meant = []
    for name, venue in REVIEWED.items():
        for listing in venue.listings:
            if not listing.params:
                types = [f'`{{ type = "{kind}" }}`' for kind in listing.types if kind]
                params = "none" if None in listing.types else types[0]
                meant.append((name, params, listing.is_full))
    assert [(name, re.split("[,:]", params)[0], full) for name, params, full in stated] == meant


def test_the_settings_table_of_exchanges_has_their_own_settings() -> None:
    stated = {cells[0].strip("`"): cells[-1] for cells in rows_after('`kind = "exchange"`')}
    fields = {**ExchangeSettings.model_fields, "params": ExchangeAccount.model_fields["params"]}
    own = fields.keys() - KeyedSettings.model_fields.keys()
    assert stated == {name: fields[name].description for name in own}


def test_every_setting_of_a_chain_is_in_its_own_table() -> None:
    lines = (ROOT / "watcher" / "providers" / "README.md").read_text().splitlines()
    rows = takewhile(lambda line: line.startswith("|"), lines[lines.index("| key | default | |") + 2 :])
    stated = {
        cells[0].strip(" `"): cells[-1].strip() for cells in (row.strip("|").split(" | ") for row in rows)
    }
    shared = {name: field.description for name, field in ProviderSettings.model_fields.items()}
    own = {name: field.description for name, field in EvmSettings.model_fields.items()}
    assert stated == {name: text for name, text in own.items() if shared.get(name) != text}


def test_the_table_of_sources_matches_each_recipe() -> None:
    stated = {cells[0].strip("`"): cells[1:] for cells in rows_after("`kind`")}
    meant = {
        name: [recipe.reads, *known(recipe), recipe.ran_against]
        for name, recipe in ((name, recipes.recipe(name)) for name in recipes.names())
    }
    assert {name: stated[name] for name in meant} == meant
    assert stated.keys() == {*kinds()}


def test_the_table_of_events_names_every_type_of_change() -> None:
    stated = [name for cells in rows_after("type") for name in re.findall(r"`([a-z_.]+)`", cells[0])]
    assert sorted(stated) == sorted((*CHANGE_EVENTS, *SERVICE_EVENTS))


def test_the_table_of_log_events_is_the_catalogue() -> None:
    said = [" | ".join(cells) for cells in rows_after("`event`")]
    assert said == [
        f"`{name}` | {line.level} | {line.fact} | {' '.join(f'`{field}`' for field in line.fields)}"
        for name, line in EVENTS.items()
    ]


def test_the_map_names_packages_that_exist() -> None:
    packages = [name for cells in rows_after("package") for name in re.findall(r"`([a-z_/.]+)`", cells[0])]
    assert packages
    assert [name for name in packages if not (ROOT / "watcher" / name).exists()] == []


@pytest.mark.parametrize(
    "package", ["providers", "journal", "store", "engine", "polling", "delivery", "run", "service", "observe"]
)
def test_the_map_names_the_modules_of_the_packages_that_do_the_work(package: str) -> None:
    (cells,) = (cells for cells in rows_after("package") if cells[0] == f"`{package}/`")
    named = set(re.findall(r"`([a-z_]+)`", cells[1])) - {"status"}  # which is a command
    there = {path.stem for path in (ROOT / "watcher" / package).glob("[a-z]*.py")}
    sources = {place.partition(":")[0].rpartition(".")[2] for place in PLACE_BY_KIND.values()}
    assert named == there - (sources if package == "providers" else set())


def test_the_map_names_every_package_and_module() -> None:
    named = {name for cells in rows_after("package") for name in re.findall(r"`([a-z_/.]+)`", cells[0])}
    modules = {path.name for path in (ROOT / "watcher").glob("[a-z]*.py")}
    packages = {f"{path.parent.name}/" for path in (ROOT / "watcher").glob("*/__init__.py")}
    assert named == modules | packages
