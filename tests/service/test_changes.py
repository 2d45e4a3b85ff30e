"""A reload logs what it changed: how much of each section, a few names, and no value."""

from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.builders import a_provider, a_subscription, an_account, seconds
from watcher.providers.loopring import LoopringAccount
from watcher.service.serve import MOST_NAMES, Change, changes
from watcher.settings import (
    AccountSettings,
    EgressSettings,
    KeyedSettings,
    ProviderSettings,
    RedisSettings,
    Section,
    Settings,
    SubscriptionSettings,
)

CANARY = "https://ops.example.com/in?token=probe_account"


def settings(*parts: Section, **sections: Section) -> Settings:
    """A configuration of these providers, accounts and subscriptions."""
    return Settings(
        provider_by_name={part.name: part for part in parts if isinstance(part, ProviderSettings)},
        account_by_name={part.name: part for part in parts if isinstance(part, AccountSettings)},
        subscription_by_name={part.name: part for part in parts if isinstance(part, SubscriptionSettings)},
    ).model_copy(update=sections)


def a_keyed_provider(key: str = "probe_before", **fields: Any) -> KeyedSettings:
    given = {**a_provider().model_dump(exclude={"ca"}), **fields}
    return KeyedSettings(api_key=SecretStr(key), **given)


BEFORE = (a_keyed_provider(), an_account(), an_account("alice"), a_subscription())


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (BEFORE, []),
        (BEFORE[::-1], []),
        ((*BEFORE, an_account("bob")), [Change("accounts", 1, 0, 0, ("+bob",))]),
        ((BEFORE[0], *BEFORE[2:]), [Change("accounts", 0, 1, 0, ("-treasury",))]),
        (
            (BEFORE[0], an_account(interval=seconds(5)[0]), an_account("carol"), BEFORE[3]),
            [Change("accounts", 1, 1, 1, ("treasury: interval", "+carol", "-alice"))],
        ),
        (
            (a_keyed_provider("probe_account", timeout=seconds(3)[0]), *BEFORE[1:]),
            [Change("providers", 0, 0, 1, ("loopring: timeout, api_key",))],
        ),
        (
            (*BEFORE[:3], a_subscription(url=CANARY, headers={"x": "probe_account"})),
            [Change("subscriptions", 0, 0, 1, ("ops: url, headers",))],
        ),
        (
            (*BEFORE[1:3], a_provider("shop"), a_subscription("others")),
            [
                Change("providers", 1, 1, 0, ("+shop", "-loopring")),
                Change("subscriptions", 1, 1, 0, ("+others", "-ops")),
            ],
        ),
        (
            (BEFORE[0], LoopringAccount(name="treasury", provider="loopring", account_id=1), *BEFORE[2:]),
            [Change("accounts", 0, 0, 1, ("treasury: account_id",))],
        ),
    ],
)
def test_every_difference_is_counted_and_named_without_its_value(
    after: tuple[Section, ...], expected: list[Change]
) -> None:
    found = changes(settings(*BEFORE), settings(*after))
    assert found == expected
    assert "probe_account" not in str(found)


def test_sections_of_which_there_is_one_are_named_with_what_differs() -> None:
    after = settings(
        *BEFORE,
        redis=RedisSettings(url=SecretStr("redis://:probe_account@here")),
        egress=EgressSettings(allow=(ip_network("10.0.0.0/8"),), nat64=True),
    )
    assert changes(settings(*BEFORE), after) == [
        Change("settings", 0, 0, 2, ("redis: url", "egress: allow, nat64"))
    ]


def test_of_many_names_a_few_are_shown_and_all_are_counted() -> None:
    many = [an_account(f"account-{number}") for number in range(1000)]
    (change,) = changes(settings(*BEFORE), settings(*BEFORE, *many))
    assert change[:4] == ("accounts", 1000, 0, 0)
    assert len(change.names) == MOST_NAMES
