"""The figures of the house can be printed, and find what they are about."""

import pytest

from tests.benchmarks import house
from tests.benchmarks.house import Source
from tests.support.servers import real_server

ONCE = """
def public():
    return _once() + _twice() + _twice()

def _once():
    return 1

def _twice():
    return 2
"""


def test_a_private_function_that_one_place_names_is_counted() -> None:
    source = Source({"one": ONCE})
    assert source.functions == 3
    assert source.used_once == ["one:_once"]


def test_modules_that_import_each_other_are_found_lazily_or_not_but_not_for_types() -> None:
    lazily = "def later():\n    from watcher.one import x\n"
    typed = "if TYPE_CHECKING:\n    from watcher.one import x\n"
    assert Source({"one": "from watcher.two import y\n", "two": lazily}).cycle
    assert not Source({"one": "from watcher.two import y\n", "two": typed}).cycle


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert Source.read().cycle == []


def test_every_broad_except_is_found() -> None:
    text = "try:\n    pass\nexcept Exception:\n    pass\ntry:\n    pass\nexcept ValueError:\n    pass\n"
    assert Source({"one": text}).broad == ["one:3"]


def test_what_the_house_has_reached_it_keeps() -> None:
    """Not what it is to be (the command in CONTRIBUTING prints all figures), but no way back from here."""
    source = Source.read()
    assert len(source.text_by_module) <= 151
    assert len(source.broad) <= 5, "what is unplanned is caught by observe.log.survived"
    assert 100 * len(source.used_once) / source.functions <= 28.5


@pytest.mark.slow
async def test_a_changed_poll_passes_through_more_modules_than_an_unchanged_one() -> None:
    with real_server("valkey") as server:
        trips = await house.travel(server.url)
    unchanged, changed, delivery = (set(whole.modules) for whole, _ in trips.values())
    assert {"journal.explain", "journal.events"} <= changed - unchanged
    assert "delivery.signing" in delivery - changed
