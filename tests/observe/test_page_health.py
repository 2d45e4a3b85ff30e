"""The head of the page and `watcher status` agree on what is healthy."""

from typing import Any

import pytest

from watcher.commands._table import Fails, Waits
from watcher.commands.status import as_text
from watcher.observe.page.document import health
from watcher.observe.views import PROBLEMS, SUBSCRIPTION_STATES, TOO_FEW, rosters_differ, server_line
from watcher.store.guarantee import Guarantee

NOTHING = dict.fromkeys(("unverified", "locked", "unfit", "shadowed", "accounts", "subscriptions"), 0)
SERVER = {"kind": "server", "at": "here", "guarantee": "", "warnings": [], "server": "Valkey 8"}


def seen(**changes: Any) -> dict[str, Any]:
    accounts = {"shown": [], "left_out": 0, "failing": 0, "stale": 0}
    none: dict[str, Any] = {"accounts": accounts, "providers": {"shown": []}, "server": SERVER}
    return {**none, "directory": NOTHING, "workers": {"shown": [], "rosters_differ": False}, **changes}


def a_provider_line(**changes: Any) -> dict[str, Any]:
    line = {"kind": "provider", "provider": "kraken", "accounts": 9, "failing": 0, "errors": [], "late_s": 0}
    rates = dict.fromkeys(("requests_per_second", "needed_per_second", "used_per_second"), 1.0)
    return {**line, **rates, "too_few_requests": False, **changes}


def a_worker_line(**changes: Any) -> dict[str, Any]:
    line = {"kind": "worker", "worker": "w1", "host": "here", "pid": 7, "version": "0.2.0", "runs": True}
    return {**line, "up_s": 9, "unseen_s": 0, "roster": "a", "configuration": "", **changes}


def a_subscription_line(**changes: Any) -> dict[str, Any]:
    line = {
        **dict.fromkeys(("failing_since", "paused_at", "per_second", "reason", "oldest_s", "record")),
        **dict.fromkeys(("ping_error", "todo")),
        **dict.fromkeys(("queues", "deliveries", "retrying", "dead", "backing_off_s"), 0),
        "kind": "subscription",
        "subscription": "ops",
        "state": "healthy",
        "record": "file",
        "breaker": "closed",
        "is_configured": True,
    }
    return {**line, **changes}


def said(found: dict[str, Any]) -> list[str]:
    return [one["text"] for one in found["problems"]]


@pytest.mark.parametrize(
    "changes",
    [
        *({"state": state} for state in SUBSCRIPTION_STATES),
        *({"state": state, "record": "unverified"} for state in ("healthy", "delayed")),
        {"dead": 2},
        {"retrying": 1},
    ],
)
def test_a_subscription_is_healthy_on_the_page_if_it_is_in_status(
    changes: dict[str, Any],
) -> None:
    line = a_subscription_line(**changes)
    screen = "\n".join(as_text([SERVER, {"kind": "accounts", "accounts": 0}, line]))
    shown = seen(directory={**NOTHING, "unverified": int(line["record"] == "unverified")})
    assert len(health(shown, [line])["problems"]) <= 1
    assert (health(shown, [line])["state"] == "well") == ("1 of 1 healthy" in screen)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_account_is_healthy_on_the_page_if_it_is_in_status(problem: str) -> None:
    line = {"kind": "account", "account": "treasury", "problems": [problem]}
    screen = "\n".join(as_text([SERVER, {"kind": "accounts", "accounts": 1}, line]))
    counts = {"failing": int(problem == "failing"), "stale": int(problem == "stale")}
    found = health(seen(accounts={"shown": [line], "left_out": 0, **counts}), [])
    assert (found["state"] == "well") == ("1 of 1 healthy" in screen)


MEMORY = 870_000_000, 1_000_000_000
GUARANTEE = Guarantee("valkey", "9.1.2", "always", "noeviction", 0, ())
CASES: dict[str, list[dict[str, Any]]] = {
    "all is well": [a_provider_line()],
    "a provider is polled late": [a_provider_line(late_s=12)],
    "a provider allows too few requests": [a_provider_line(too_few_requests=True)],
    "workers have different lists": [a_worker_line(), a_worker_line(worker="w2", roster="b")],
    "workers that ended had another list": [a_worker_line(), a_worker_line(roster="b", runs=False)],
    "Redis is nearly full": [server_line(GUARANTEE, "here", MEMORY)],
    "Redis has room": [server_line(GUARANTEE, "here", (840_000_000, MEMORY[1]))],
    "Redis has no limit": [server_line(GUARANTEE, "here", (10**12, 0))],
    "a subscription is not configured": [a_subscription_line(is_configured=False)],
}


@pytest.mark.parametrize("case", CASES)
def test_every_warning_of_status_is_on_the_page(case: str) -> None:
    lines = CASES[case]

    def of(kind: str) -> list[dict[str, Any]]:
        return [line for line in lines if line["kind"] == kind]

    (server,) = of("server") or [SERVER]
    workers = of("worker") or [a_worker_line()]
    accounts = {"kind": "accounts", "accounts": 0}
    screen = as_text([server, *workers, *of("provider"), accounts, *of("subscription")])
    warns = sum(isinstance(text, Waits | Fails) for text in screen)
    warns += sum(not line["is_configured"] for line in of("subscription"))
    found = health(
        seen(
            server=server,
            providers={"shown": of("provider")},
            workers={"shown": workers, "rosters_differ": rosters_differ(workers)},
        ),
        of("subscription"),
    )
    assert len(said(found)) == warns == (not case.startswith(("all", "workers that", "Redis has")))
    assert found["state"] == ("waiting" if warns else "well")


def test_the_page_says_how_full_redis_is_and_what_to_do() -> None:
    def warnings(used: int) -> list[str]:
        return [*server_line(GUARANTEE, "here", (used, 10**9))["warnings"]]

    (nearly,), (full,) = warnings(900_000_000), warnings(1_000_400_000)
    assert nearly.startswith("90 % of its memory is used (900 of 1,000 MB): workers remove the oldest")
    assert "no account is polled until memory is free" in full
    assert all(text.endswith("raise maxmemory, or find out what else fills it") for text in (nearly, full))
    assert warnings(850_000_000) == []


def test_problems_for_a_person_come_first_then_failures_then_waits() -> None:
    error = {"error_class": "auth", "reason": "status 401", "todo": "set a key that is good"}
    slow = {"error_class": "rate", "reason": "status 429", "todo": "lower requests_per_second"}
    provider = a_provider_line(late_s=12, too_few_requests=True, errors=[error, slow])
    accounts = {
        "shown": [{"problems": ["never read"]}, {"problems": ["never read", "failing"]}],
        "left_out": 3,
        "failing": 1,
        "stale": 0,
    }
    server = {**SERVER, "warnings": ["nothing is written to disk"]}
    directory = {**NOTHING, "unverified": 1, "locked": 2, "shadowed": 4}
    shown = seen(accounts=accounts, providers={"shown": [provider]}, server=server, directory=directory)
    found = health(shown, [a_subscription_line(state="delayed"), a_subscription_line(state="paused", dead=1)])
    assert found["state"] == "failing"
    assert said(found) == [
        "kraken: auth: status 401",
        "1 account failing",
        "1 subscription paused",
        "1 provider polled late",
        "1 subscription delayed",
        "1 dead letter",
        "1 record of the API unverified",
        "2 records of the API locked",
        f"kraken: {TOO_FEW}",
        "Redis: nothing is written to disk",
        "at least 1 account not read yet",
    ]


def test_a_healthy_system_shows_no_problem() -> None:
    assert health(seen(), [a_subscription_line()]) == {"state": "well", "problems": []}
