"""The index of subscriptions finds the same as a walk over all of them, and follows changes in place."""

import time
from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import a_subscription
from watcher.journal.interest import Interest
from watcher.settings import SubscriptionSettings

ACCOUNTS = ("a", "ab", "abc", "b", "ba", "b.c", "a-1", "a-2")
GLOBS = (*ACCOUNTS[:6], "*", "a*", "ab*", "?", "?b*", "[ab]", "[!a]*", "a-[12]", "*c", "x*")


def the_plain_loop(subscriptions: dict[str, SubscriptionSettings], account: str) -> tuple[str, ...]:
    return tuple(
        name
        for name, settings in subscriptions.items()
        if any(fnmatchcase(account, glob) for glob in settings.accounts)
    )


wished = st.lists(st.sampled_from(GLOBS), min_size=1, max_size=4, unique=True).map(tuple)
differences = st.dictionaries(st.sampled_from("pqrstu"), st.none() | wished, max_size=4)


@given(st.lists(differences, max_size=6))
def test_the_index_finds_the_same_subscriptions_in_the_same_order_as_a_full_walk(
    changes: list[dict[str, tuple[str, ...] | None]],
) -> None:
    plain: dict[str, SubscriptionSettings] = {}
    interest, version = Interest({}), 0
    for change in changes:
        difference = {
            name: a_subscription(name, accounts=globs) if globs else None for name, globs in change.items()
        }
        interest.change(difference)
        assert interest.version > version
        version = interest.version
        for name, settings in difference.items():
            if settings is None:
                plain.pop(name, None)
            else:
                plain[name] = settings
        for account in ACCOUNTS:
            expected = the_plain_loop(plain, account)
            assert interest.listeners(account) == expected == interest.listeners(account)
    assert [Interest(plain).listeners(account) for account in ACCOUNTS] == [
        interest.listeners(account) for account in ACCOUNTS
    ]


def listening_s(subscriptions: int) -> float:
    """How long it takes to name the listeners of accounts that were not asked about before."""
    interest = Interest(
        {
            f"s{number}": a_subscription(f"s{number}", accounts=(f"team-{number}", f"shop-{number}-*"))
            for number in range(subscriptions)
        }
    )
    began = time.perf_counter()
    for number in range(300):
        assert interest.listeners(f"team-{number}") == ((f"s{number}",) if number < subscriptions else ())
    return time.perf_counter() - began


def test_subscriptions_for_other_accounts_cost_no_time() -> None:
    """A walk over all of them would take 300 times as long."""
    assert min(listening_s(3000) for _ in range(3)) < 30 * min(listening_s(10) for _ in range(3))
