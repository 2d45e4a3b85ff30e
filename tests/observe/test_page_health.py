"""The head of the page and `watcher status` agree on what is as it should be."""

from typing import Any

import pytest

from watcher.commands.status import as_text
from watcher.observe.page.document import health
from watcher.observe.views import PROBLEMS, SUBSCRIPTION_STATES

NOTHING = dict.fromkeys(("unverified", "locked", "unfit", "shadowed", "accounts", "subscriptions"), 0)
SERVER = {"kind": "server", "at": "here", "guarantee": "", "warnings": [], "server": "Valkey 8"}


def seen(**changes: Any) -> dict[str, Any]:
    accounts = {"shown": [], "left_out": 0, "failing": 0, "stale": 0}
    none: dict[str, Any] = {"accounts": accounts, "providers": {"shown": []}, "server": SERVER}
    return {**none, "directory": NOTHING, **changes}


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
def test_a_subscription_is_well_on_the_page_if_it_is_as_it_should_be_in_status(
    changes: dict[str, Any],
) -> None:
    line = a_subscription_line(**changes)
    screen = "\n".join(as_text([SERVER, {"kind": "accounts", "accounts": 0}, line]))
    shown = seen(directory={**NOTHING, "unverified": int(line["record"] == "unverified")})
    assert len(health(shown, [line])["problems"]) <= 1
    assert (health(shown, [line])["state"] == "well") == ("1 of 1 as they should be" in screen)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_account_is_well_on_the_page_if_it_is_as_it_should_be_in_status(problem: str) -> None:
    line = {"kind": "account", "account": "treasury", "problems": [problem]}
    screen = "\n".join(as_text([SERVER, {"kind": "accounts", "accounts": 1}, line]))
    counts = {"failing": int(problem == "failing"), "stale": int(problem == "stale")}
    found = health(seen(accounts={"shown": [line], "left_out": 0, **counts}), [])
    assert (found["state"] == "well") == ("1 of 1 as they should be" in screen)


def test_what_fails_comes_before_what_waits_and_a_person_is_needed_for_before_all() -> None:
    error = {"error_class": "unauthorized", "reason": "status 401", "todo": "set a key that is good"}
    provider = {"provider": "kraken", "late_s": 12, "errors": [error, {**error, "todo": None}]}
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
        "kraken: unauthorized: status 401",
        "1 account failing",
        "1 subscription paused",
        "1 provider polled late",
        "1 subscription delayed",
        "1 dead letter",
        "1 record of the API unverified",
        "2 records of the API locked",
        "Redis: nothing is written to disk",
        "at least 1 account not read yet",
    ]


def test_where_nothing_is_wrong_nothing_is_said() -> None:
    assert health(seen(), [a_subscription_line()]) == {"state": "well", "problems": []}
