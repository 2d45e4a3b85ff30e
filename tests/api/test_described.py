"""The API is what its OpenAPI document says: valid and invalid requests made from it find no difference."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
import schemathesis
from click.testing import CliRunner
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from tests.support.api import OPERATORS, an_api_of
from tests.support.directory import with_key
from tests.support.rig import Rig, a_rig
from watcher.api import access
from watcher.commands.schema import command
from watcher.providers.contract import PLACE_BY_KIND, provider_class
from watcher.settings import SubscriptionSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),  # the worker does, beside
]

# What a schema cannot say: a cursor is opaque, a host may be refused, a name may be taken.
_FIT = ["2xx", "400", "401", "403", "404", "409", "410", "412", "422", "429"]
_UNFIT = ["400", "401", "403", "404", "406", "409", "412", "413", "415", "422", "429"]


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        rig.settings = with_key(rig.settings)
        rig.is_damaged = True  # accounts come and go: their events are not those of the receiver
        yield rig


@schemathesis.serializer("application/jsonl")
def serialize_lines(_: object, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")


def tried(document: Mapping[str, Any], url: str, *, examples: int, phases: Mapping[str, bool]) -> list[str]:
    """Say what is found in the answers to requests made of this document."""
    config = SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "base-url": url,
            "headers": {"Authorization": f"Bearer {OPERATORS}"},
            "suppress-health-check": ["all"],  # a loaded machine is slow
            "generation": {
                "max-examples": examples,
                "deterministic": True,
                "database": "none",
                "no-shrink": True,
            },
            "phases": {name: {"enabled": is_on} for name, is_on in phases.items()},
            "checks": {
                "positive_data_acceptance": {"expected-statuses": _FIT},
                "negative_data_rejection": {"expected-statuses": _UNFIT},
            },
        }
    )
    schema = schemathesis.openapi.from_dict(dict(document), config=config)
    return [*_found(from_schema(schema).execute())]


def _found(seen: Iterator[Any]) -> Iterator[str]:
    asked = Counter[str]()
    for event in seen:
        if isinstance(event, events.NonFatalError | events.FatalError):
            info = event.info if isinstance(event, events.NonFatalError) else event.exception
            yield f"{event}: {getattr(info, 'traceback', info)}"
        if not isinstance(event, events.ScenarioFinished):
            continue
        asked["requests"] += len(event.recorder.interactions)
        for checks in event.recorder.checks.values():
            for check in checks:
                if check.status is Status.FAILURE:
                    yield f"{event.label}: {check.failure_info.failure if check.failure_info else check.name}"
    assert asked["requests"] > 50


async def described(rig: Rig, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[str]:
    monkeypatch.setattr(access, "PER_SECOND", 100_000)
    async with rig.worker() as worker, an_api_of(worker) as api:
        async with asyncio.timeout(10):
            while (await api.get("/accounts")).status == 503:  # noqa: ASYNC110 - it has no signal
                await asyncio.sleep(0.005)
        document = (await api.get("/openapi.json")).data
        found = await asyncio.to_thread(tried, document, f"http://{api.address}", **how)
        assert (await api.get("/accounts/treasury")).status == 200
    return found


async def test_single_requests_find_nothing_that_the_document_does_not_describe(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {"examples": True, "coverage": False, "fuzzing": True, "stateful": False}
    assert await described(rig, monkeypatch, examples=3, phases=some) == []


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_sequences_of_requests_find_nothing_that_the_document_does_not_describe(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = {"examples": True, "coverage": True, "fuzzing": True, "stateful": True}
    assert await described(rig, monkeypatch, examples=30, phases=all_of_them) == []


def test_the_command_prints_schemas_that_any_worker_would_accept() -> None:
    said = CliRunner().invoke(command, ["api"])
    document = json.loads(said.stdout)
    schemas = document["components"]["schemas"]
    subscription = schemas["SubscriptionSettings"]
    assert subscription["properties"].keys() == SubscriptionSettings.model_fields.keys()
    assert subscription["required"] == ["url"]
    assert subscription["properties"]["retries"]["default"][:2] == ["0s", "250ms"]
    account = schemas["LoopringAccount"]["properties"]
    assert account["interval"]["default"] == "30s"
    assert "enum" not in account["provider"], "only a worker with a file can list them"
    kinds = {provider_class(kind).Account.__name__ for kind in PLACE_BY_KIND}
    assert {one["$ref"].rpartition("/")[2] for one in schemas["AccountSettings"]["anyOf"]} == kinds
