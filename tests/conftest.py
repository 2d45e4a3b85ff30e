"""Fixtures for all tests. They are for things to close; everything else is a builder in its test file.

redis_server_url  URL of a real server that all tests of the run share. Nothing is ever flushed: keep to
                  your `namespace`, and start a server of your own (`real_server`) to kill it, to change its
                  settings or to flush it.
namespace         a key prefix that no other test has.
redis_client      a client as the program makes it, on the shared server of `engine`.
engine            "valkey". A test that is to hold everywhere says so, and runs once for each:
                      @pytest.mark.parametrize("engine", EVERY_ENGINE)  # real ones have least rights
                      @pytest.mark.parametrize("engine", ENGINES)        # real servers only
                  with `from tests.support.servers import EVERY_ENGINE, ENGINES`.
"""

import gc
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path

import pytest
import structlog
from fakeredis import FakeAsyncRedis, FakeServer
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from tests.support.fuzzing import give_form
from tests.support.servers import FAKE, LIMITED, LIMITED_NAMESPACE, limited_server, real_server
from watcher import printable, signals
from watcher.store.client import connect

pytest_plugins = ("tests.support.processes",)

# With rich, which comes with schemathesis, structlog takes a second to draw each traceback.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# What hypothesis finds slow, it finds by the clock on the wall, which a busy machine stops.
busy = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("busy", busy)
settings.register_profile("long", busy, max_examples=4000)  # to be asked for: `--hypothesis-profile long`
settings.load_profile("busy")

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let all processes of the run share what is compiled, where none of it is to be left behind.

    Else each of the hundreds compiles all that it imports. Where bytecode is written, they share that anyway.
    """
    is_first = not hasattr(config, "workerinput")  # the others inherit its environment
    if is_first and sys.dont_write_bytecode and not sys.pycache_prefix:
        directory = tempfile.mkdtemp(prefix="watcher-bytecode-")
        config.add_cleanup(partial(shutil.rmtree, directory, ignore_errors=True))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = directory
        sys.dont_write_bytecode = False
        _take_along_what_is_compiled()


def _take_along_what_is_compiled() -> None:
    """Let what is compiled already be found in the new place too: Python looks nowhere else then."""
    specs = [module.__spec__ for module in [*sys.modules.values()] if getattr(module, "__spec__", None)]
    compiled = {(spec.origin, spec.cached) for spec in specs if spec and spec.origin and spec.cached}
    for origin, file in compiled:
        if os.path.exists(file):
            place = Path(cache_from_source(origin))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Let each of the run's processes import the tests from another one on, before it collects them.

    They share the bytecode, so each then compiles its part of the tests, where it compiled all of them: they
    went through the same list at the same time.
    """
    own = getattr(session.config, "workerinput", None)
    if own is None:
        return
    names = [
        ".".join(path.with_suffix("").relative_to(session.config.rootpath).parts)
        for place in session.config.args
        for path in sorted(Path(place).resolve().rglob("test_*.py"))
    ]
    first = len(names) * int(own["workerid"].removeprefix("gw")) // own["workercount"]
    for name in names[first:] + names[:first]:
        with suppress(Exception, pytest.skip.Exception):  # its collection reports what is wrong with it
            import_module(name)


def pytest_collection_finish() -> None:
    """Spare the collections of garbage from here on the thousands of tests, which live to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A command that ran inside of a test may have taken over signals that are not its own: pytest's."""
    handler_by_number = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    before = signals._pass_on
    yield
    if signals._pass_on is not before:
        signals._pass_on = before
        for number, handler in handler_by_number.items():
            signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every tool has been installed (`.ci/run` says so), a test that skips is one that is not run."""
    report = yield
    skips = call.excinfo and call.excinfo.errisinstance(pytest.skip.Exception)
    if skips and "CI_ALL_TOOLS" in os.environ and not item.get_closest_marker("may_skip"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be missing: {report.longreprtext}"
    return report


@pytest.fixture(scope="session")
def server_url_of() -> Iterator[Callable[[str], str]]:
    """Look up the shared server of an engine; it starts when it is first asked for."""
    url_by_engine: dict[str, str] = {}
    with ExitStack() as servers:

        def url_of(engine: str) -> str:
            if engine in LIMITED and engine not in url_by_engine:
                url_by_engine[engine] = servers.enter_context(limited_server(engine))
            elif engine not in url_by_engine:
                url_by_engine[engine] = servers.enter_context(real_server(engine)).url
            return url_by_engine[engine]

        yield url_of


@pytest.fixture(scope="session")
def redis_server_url(server_url_of: Callable[[str], str]) -> str:
    return server_url_of("valkey")


@pytest.fixture
def engine() -> str:
    return "valkey"


@pytest.fixture
def namespace(engine: str) -> str:
    own = f"t{os.getpid()}-{next(_numbers)}"
    return f"{LIMITED_NAMESPACE}:{own}" if engine in LIMITED else own


@pytest.fixture
async def redis_client(engine: str, server_url_of: Callable[[str], str]) -> AsyncIterator[Redis]:
    client = (
        FakeAsyncRedis(server=FakeServer(), protocol=2) if engine == FAKE else connect(server_url_of(engine))
    )
    async with client:
        yield client


@pytest.fixture(autouse=True)
def no_secrets_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's configuration hides must not be missing from what another one reads."""
    monkeypatch.setattr(printable, "_secrets_by_part", {})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what takes minutes, so that `pytest` leaves it to `pytest -m fault` and `pytest -m long`."""
    give_form(items, is_long=bool(re.search(r"(?<!not )\blong\b", config.option.markexpr)))
    for item in items:
        if item.path.parent.name == "faults" and item.path.name != "test_verdict.py":
            item.add_marker(pytest.mark.fault)
