"""The figures of the code can be printed, count what they say, and keep their bounds."""

import subprocess
import sys
from collections.abc import Iterable
from functools import cache

import pytest

from tests.benchmarks import house
from tests.benchmarks.house import Source
from tests.support import ROOT
from tests.support.servers import real_server
from watcher.providers.contract import PLACE_BY_KIND

our_house = cache(Source.read)

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


def test_import_cycles_are_found_lazy_ones_too_but_not_those_for_types() -> None:
    lazily = "def later():\n    from watcher.one import x\n"
    typed = "if TYPE_CHECKING:\n    from watcher.one import x\n"
    assert Source({"one": "from watcher.two import y\n", "two": lazily}).cycle
    assert not Source({"one": "from watcher.two import y\n", "two": typed}).cycle


def test_no_imports_form_a_cycle() -> None:
    assert our_house().cycle == []


def test_every_broad_except_is_found() -> None:
    text = "try:\n    pass\nexcept Exception:\n    pass\ntry:\n    pass\nexcept ValueError:\n    pass\n"
    assert Source({"one": text}).broad == ["one:3"]
    assert Source({"one": "with suppress(OSError, Exception):\n    pass\n"}).broad == ["one:1"]


ASKED_BY_A_COMMIT = {"delivery.queue", "delivery.breakers", "engine.breaker"}
"""How many queues it may lease: the way of the delivery begins there."""


def of_the_house(modules: Iterable[str]) -> set[str]:
    """Without the HTTP client and the logger, which are counted as little as those of other projects that
    they replaced."""
    return {module for module in modules if not module.startswith("http.") and module != "observe.log"}


SOURCES = {place.partition(":")[0].removeprefix("watcher.") for place in PLACE_BY_KIND.values()}
"""A module each: more of them cut nothing finer."""
OF_SOURCES = 6
"""What reads recipes, paths into an answer, a bank to simulate, and three commands that came with sources:
recipes, poll, accounts."""
OF_THE_API = {
    *("encryption", "store.directory", "run.directory", "run.edits", "run.verification", "config.bodies"),
    *("api.__init__", "api.server", "api.access", "api.problems", "api.openapi", "api.edits"),
    *("api.accounts", "api.subscriptions", "api.events", "commands.export", "commands.import_"),
}
"""What holds accounts and subscriptions that come while it runs, and who is shown them."""
OF_FORMATS = {"delivery.chat", "delivery.formats.sentences", "delivery.formats.services"}
"""Messages for people: their target, their words, and what each service takes."""


def test_no_figure_of_the_code_is_worse_than_its_bound() -> None:
    source = our_house()
    assert len(source.text_by_module.keys() - SOURCES - OF_THE_API - OF_FORMATS) <= 128 + OF_SOURCES
    assert len(source.broad) <= 3, "what is unplanned is caught by engine.loop.survived"
    assert len(source.used_once) / source.functions <= 0.12


@pytest.mark.slow
async def test_a_poll_and_a_delivery_pass_through_few_modules() -> None:
    with real_server("valkey") as server:
        trips = await house.travel(server.url)
    unchanged, changed, delivery = (of_the_house(whole.modules) for whole, _ in trips.values())
    assert delivery >= ASKED_BY_A_COMMIT
    changed -= ASKED_BY_A_COMMIT
    assert (len(unchanged) <= 10, len(changed) <= 20, len(delivery) <= 14) == (True, True, True)
    assert {"journal.explain", "journal.events"} <= changed - unchanged
    assert "delivery.signing" in delivery - changed
    parsed, printed = (trips["a changed poll"][1].times("amounts", name) for name in ("to_atoms", "to_text"))
    assert max(parsed, printed) <= 3, "once for each of the assets, though one amount of one of them changed"


@pytest.mark.slow
def test_one_provider_more_makes_few_objects() -> None:
    asked = (sys.executable, "-m", "tests.benchmarks.house", "--objects")
    objects = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=50, check=True).stdout
    assert 4.5 <= float(objects) <= 5.5, "five, and those that happen to be in hand"
