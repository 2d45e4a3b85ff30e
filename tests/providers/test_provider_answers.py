"""Every odd answer of data/provider_answers.json, over a real socket, gets its verdict."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.providers.provider_tls import a_certificate_for
from tests.support.memory import growing_at_most, held_mib
from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_token_list,
    answer,
    body_of,
    dripping,
    loopring_account,
    loopring_client,
    metakeep_account,
    metakeep_client,
)
from watcher.amounts import to_atoms
from watcher.providers.contract import Rejected
from watcher.snapshot import Row, Snapshot

DATA = json.loads((Path(__file__).parents[1] / "data" / "provider_answers.json").read_text())
CONTEXT = DATA["context"]
CASES: list[Mapping[str, Any]] = DATA["cases"]

DOUBTFUL = {"L057", "M042"}
"""More is locked than there is. The poll is good, the balance is not: `watcher.journal.suspect` judges it."""

TIMEOUT_BY_FAULT_S = {"slow_body": 0.2, "dns_failure": 0.5}

CPU_LIMIT_S = 0.05
"""Of the process, the stage included: the dearest case takes a tenth of it."""

GROWTH_LIMIT_MIB = 8


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
async def test_an_odd_answer_gets_its_verdict(case: Mapping[str, Any]) -> None:
    tries = [await cost_of(case) for _ in range(3)]
    verdict = tries[0][1]
    assert median(cpu_s for cpu_s, _ in tries) < CPU_LIMIT_S
    if case["id"] in DOUBTFUL:
        assert isinstance(verdict, Snapshot)
        assert any(to_atoms(row.balance.locked) > to_atoms(row.balance.total) for row in rows(verdict))
    elif case["expected"]["verdict"] == "reject":
        assert isinstance(verdict, Rejected)
    else:
        assert isinstance(verdict, Snapshot), verdict
        spoken_of = {asset: components(case["provider"], row) for asset, row in verdict.row_by_asset.items()}
        assert spoken_of == case["expected"]["assets"]
        assert moved(case["provider"], verdict) == case["expected"]["changed"]


def test_all_cases_are_there() -> None:
    assert len(CASES) == 131
    assert {case["provider"] for case in CASES} == {"loopring", "metakeep"}
    assert {case["id"] for case in CASES} > DOUBTFUL


async def cost_of(case: Mapping[str, Any]) -> tuple[float, Snapshot | Rejected]:
    """Seconds of a processor, and the verdict."""
    async with staged(case) as (client, account):
        started_s = time.process_time()
        verdict = await verdict_on(client, account)
        return time.process_time() - started_s, verdict


async def test_all_odd_answers_together_take_no_memory() -> None:
    for case in CASES:  # what it takes to make them is not the question
        body_of(case)
    before = held_mib()
    for case in CASES:
        async with staged(case) as (client, account):
            with growing_at_most(GROWTH_LIMIT_MIB):
                await verdict_on(client, account)
    assert held_mib() - before < GROWTH_LIMIT_MIB


@asynccontextmanager
async def staged(case: Mapping[str, Any]) -> AsyncIterator[tuple[Any, Any]]:
    """A client and an account whose provider answers as the case says."""
    fault = case.get("transport_fault")
    tls = a_certificate_for("api.example.org") if fault == "tls_bad_certificate" else None
    async with Stage(tls=tls) as stage:
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1))
        body = body_of(case)
        headers = dict(case.get("headers", {}))
        if case.get("body_gen", {}).get("gzip"):
            headers["Content-Encoding"] = "gzip"
        stage.reply = answer(
            body,
            case.get("status", 200),
            content_type=case.get("content_type", "application/json"),
            headers=headers,
            promised=len(body) + 100 if fault == "content_length_short" else None,
        )
        if fault == "slow_body":
            stage.reply = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 226\r\n\r\n", b" ", every_s=0.02)
        url = await url_for(fault, stage)
        timeout_s = TIMEOUT_BY_FAULT_S.get(fault or "", 5)
        if case["provider"] == "loopring":
            account: Any = loopring_account(tokens=tuple(map(int, CONTEXT["loopring"]["watch"])))
            client = loopring_client(url, timeout_s=timeout_s)
        else:
            account = metakeep_account(*CONTEXT["metakeep"]["watch"])
            client = metakeep_client(url, timeout_s=timeout_s)
        async with client:
            yield client, account


async def url_for(fault: str | None, stage: Stage) -> str:
    if fault == "dns_failure":
        return "http://no-such-host.invalid"
    if fault == "connect_refused":
        async with Stage() as closed:
            return closed.url
    return stage.url


async def verdict_on(client: Any, account: Any) -> Snapshot | Rejected:
    try:
        return await client.read(account, await client.ask(account))  # type: ignore[no-any-return]
    except Rejected as refused:
        return refused


def rows(snapshot: Snapshot) -> list[Row]:
    return list(snapshot.row_by_asset.values())


def components(provider: str, row: Row) -> dict[str, str | None]:
    """A row in the words of the cases."""
    total, locked, deposit, withdrawal = row.balance
    if provider == "metakeep":
        assert deposit is None
        assert withdrawal is None
        return {"balance": total, "locked": None if row.locked_absent else locked}
    return {"total": total, "locked": locked, "pending_withdraw": withdrawal, "pending_deposit": deposit}


def moved(provider: str, snapshot: Snapshot) -> list[str]:
    """What differs from the last state; an absent lock moved nothing yet (it is suspect)."""
    last_state = CONTEXT[provider]["last_state"]
    return [
        f"{asset}.{name}"
        for asset, row in snapshot.row_by_asset.items()
        for name, value in components(provider, row).items()
        if value is not None and value != last_state[asset][name]
    ]
