"""A script is read strictly, tried out, and played by an injected clock."""

from collections.abc import Awaitable, Callable
from itertools import islice
from random import Random

import pytest

from watcher.sandbox.answers import UNAVAILABLE
from watcher.sandbox.book import ProviderName
from watcher.sandbox.knobs import BankKnobs, Knobs, LoopringKnobs, MetakeepKnobs
from watcher.sandbox.script import (
    FORMS,
    MOVEMENTS,
    ScriptError,
    Step,
    default_script,
    play,
    read_script,
    wander,
)
from watcher.sandbox.world import World, default_world

SEEN = '{"at": 1, "account": 10110, "asset": "LRC", "do": "deposit.seen", "amount": "12.5"}'


def some_knobs() -> dict[ProviderName, Knobs]:
    return {"loopring": LoopringKnobs(), "metakeep": MetakeepKnobs(), "bank": BankKnobs()}


def a_clock(moments: list[float]) -> Callable[[float], Awaitable[None]]:
    async def until(at_s: float) -> None:
        moments.append(at_s)

    return until


def mistakes(text: str) -> list[str]:
    with pytest.raises(ScriptError) as caught:
        read_script(text, default_world(), source="x.jsonl")
    return str(caught.value).splitlines()


def a_line(**changed: object) -> str:
    keys = {"at": "1", "account": "10110", "asset": '"LRC"', "do": '"credit"', "amount": '"1"'}
    said = {key: value for key, value in (keys | changed).items() if value is not None}
    return "{" + ", ".join(f'"{key}": {value}' for key, value in said.items()) + "}"


async def test_steps_are_made_when_they_are_due() -> None:
    world, moments = default_world(), list[float]()
    before = world.holding(10110, "LRC").total
    made: list[Step] = []
    script = read_script(
        SEEN + "\n\n# a comment\n" + SEEN.replace("seen", "cleared").replace("1,", "2.5,", 1), world
    )
    await play(script, world, some_knobs(), until=a_clock(moments), made=made.append)
    assert moments == [1, 2.5]
    assert [step.line for step in made] == [1, 4]
    assert world.holding(10110, "LRC").total == before + 12_500_000_000_000_000_000


def test_reading_a_script_changes_nothing() -> None:
    world = default_world()
    before = world.holdings(10110)
    read_script(a_line(), world)
    assert world.holdings(10110) == before


async def test_every_movement_can_be_used_in_a_script() -> None:
    world = default_world()
    lines = [
        a_line(do='"deposit.seen"', amount='"9"'),
        a_line(do='"deposit.cleared"', amount='"5"', split="1", first='"total"'),
        a_line(do='"deposit.dropped"', amount='"4"'),
        a_line(do='"withdrawal.requested"', amount='"3"', lock="true"),
        a_line(do='"withdrawal.debited"', amount='"3"'),
        a_line(do='"withdrawal.cleared"', amount='"1"'),
        a_line(do='"withdrawal.returned"', amount='"2"'),
        a_line(do='"lock"'),
        a_line(do='"unlock"'),
        a_line(do='"credit"'),
        a_line(do='"debit"'),
        a_line(do='"set"', amount=None, locked='"7"'),
        '{"at": 2, "do": "fault", "provider": "loopring", "fault": "unavailable", "answers": 2}',
    ]
    knobs = some_knobs()
    await play(read_script("\n".join(lines), world), world, knobs, until=a_clock([]))
    world.settle(10110)
    holding = world.holding(10110, "LRC")
    assert holding == (1004 * 10**18, 7 * 10**18, 0, 0)
    assert list(knobs["loopring"].next_answers) == [UNAVAILABLE, UNAVAILABLE]


def test_the_step_forms_are_the_movements_and_two_more() -> None:
    assert set(FORMS) == set(MOVEMENTS) | {"fault", "repeat"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON; a step is"),
        ('{"at": 1, "at": 2}', "at: is given twice"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        (a_line(do=None), "do: not something a script can do"),
        (a_line(do="5"), "do: not something a script can do"),
        (a_line(do='"deposit.sen"'), "did you mean 'deposit.seen'?"),
        (a_line(amuont='"5"'), "amuont: not a key of credit -- did you mean 'amount'?"),
        (a_line(split="1"), "split: not a key of credit"),
        (a_line(at=None), "at: missing"),
        (a_line(account=None), "account: missing; credit needs at, account, asset, amount"),
        (a_line(at="-1"), "at: seconds since the start"),
        (a_line(at="NaN"), "at: seconds since the start"),
        (a_line(at='"1"'), "at: seconds since the start"),
        (a_line(at="true"), "at: seconds since the start"),
        (a_line(account="true"), "account: an account id"),
        (a_line(account="10199"), "no account 10199 in this world, which has "),
        (a_line(asset="1"), "asset: an id or a symbol, as text"),
        (a_line(asset='"DOGE"'), "loopring lists no such asset; it lists ETH, LRC"),
        (a_line(amount="12.5"), "amount: text in whole units"),
        (a_line(amount="5"), "amount: text in whole units"),
        (a_line(amount='"1e3"'), "an amount is decimal text in whole units"),
        (a_line(asset='"USDC"', amount='"0.0000001"'), "USDC has 6 decimals; this amount has 7"),
        (a_line(do='"deposit.cleared"', split="-1"), "split: polls from the first half"),
        (a_line(do='"deposit.cleared"', first='"money"'), "first: the half that shows first"),
        (a_line(do='"withdrawal.requested"', lock='"yes"'), "lock: true or false"),
        (a_line(do='"set"', amount=None), "set: needs one or more of total"),
        (a_line(do='"set"', amount=None, total="5"), "total: text in whole units"),
        (a_line(do='"debit"', amount='"1000.1"'), "debit: total of LRC would fall to -0.1"),
        ('{"at": 1, "do": "repeat"}', "repeat needs steps before it"),
        ('{"at": 1, "do": "fault", "provider": "kraken", "fault": "hang"}', "provider:"),
        (
            '{"at": 1, "do": "fault", "provider": "loopring", "fault": "unavailble"}',
            "did you mean 'unavailable'?",
        ),
        (
            '{"at": 1, "do": "fault", "provider": "loopring", "fault": "hang", "answers": 0}',
            "answers: how many",
        ),
    ],
    ids=lambda text: text[:60],
)
def test_a_mistake_is_reported_with_its_line_and_a_hint(line: str, said: str) -> None:
    (mistake,) = mistakes("# the second line is wrong\n" + line)
    assert mistake.startswith("x.jsonl:2: ")
    assert said in mistake


def test_all_mistakes_are_reported_at_once() -> None:
    text = "\n".join([a_line(at="-1"), a_line(), a_line(asset='"DOGE"')])
    assert [mistake.split(" ")[0] for mistake in mistakes(text)] == ["x.jsonl:1:", "x.jsonl:3:"]


def test_an_empty_script_is_a_mistake() -> None:
    assert mistakes("# nothing\n")[0].startswith("x.jsonl:1: no steps")


def test_steps_must_be_in_order_of_time() -> None:
    assert "earlier than line 1" in mistakes(a_line(at="2") + "\n" + a_line(at="1"))[0]


def test_nothing_follows_a_repeat() -> None:
    text = a_line() + '\n{"at": 2, "do": "repeat"}\n' + a_line(at="3")
    assert "nothing can follow the repeat in line 2" in mistakes(text)[0]


def test_a_script_that_cannot_be_repeated_says_so_before_it_starts() -> None:
    text = a_line(do='"debit"', amount='"600"') + '\n{"at": 2, "do": "repeat"}'
    assert mistakes(text) == ["x.jsonl:1: debit: total of LRC would fall to -200"]


def test_a_script_that_repeats_has_no_end_and_its_time_goes_on() -> None:
    script = read_script(a_line() + "\n" + a_line(at="2") + '\n{"at": 10, "do": "repeat"}', default_world())
    assert [step.at for step in islice(script, 5)] == [1, 2, 11, 12, 21]


def test_a_script_can_name_accounts_by_address() -> None:
    world = default_world()
    address = world.account(10110).address
    read_script(a_line(account=f'"{address}"'), world)


async def test_an_impossible_step_ends_the_play_and_names_its_line() -> None:
    world = default_world()
    script = read_script("\n" + a_line(do='"debit"', amount='"600"'), world, source="x.jsonl")
    world.debit(10110, "LRC", "600")
    with pytest.raises(ScriptError, match=r"x\.jsonl:2: debit: total of LRC would fall to -200"):
        await play(script, world, some_knobs(), until=a_clock([]), source=script.source)


async def test_a_step_that_needs_a_late_half_shows_it_without_a_poll() -> None:
    world = default_world()
    text = "\n".join(
        [
            a_line(do='"deposit.seen"', amount='"5"'),
            a_line(do='"deposit.cleared"', amount='"5"', split="1"),
            a_line(do='"debit"', amount='"1005"'),
        ]
    )
    await play(read_script(text, world), world, some_knobs(), until=a_clock([]))
    assert world.holding(10110, "LRC").total == 0


async def test_the_default_script_goes_on_for_ever() -> None:
    world = default_world()
    before = {account.key: world.holdings(account.key) for account in world.accounts()}
    script = default_script()
    rounds = 50
    await play(islice(script, rounds * len(script.steps)), world, some_knobs(), until=a_clock([]))
    for account in world.accounts():
        world.settle(account.key)
        touched = before[account.key]
        assert {asset: world.holdings(account.key)[asset] for asset in touched} == touched


async def test_the_default_script_shows_every_kind_of_movement() -> None:
    shown = {step.do for step in default_script().steps}
    assert shown == set(FORMS) - {"repeat", "set"}


def wandered(seed: int, steps: int) -> tuple[World, list[Step]]:
    world, made = default_world(), []
    for step in islice(wander(world, Random(seed), every_s=2), steps):
        step.make(world, {})
        world.settle(step.account or 0)
        made.append(step)
    return world, made


def test_the_same_seed_makes_the_same_changes() -> None:
    assert wandered(7, 200)[1] == wandered(7, 200)[1] != wandered(8, 200)[1]


def test_a_wanderer_makes_every_kind_of_movement_in_time() -> None:
    _, made = wandered(1, 1000)
    assert {step.do for step in made} == set(MOVEMENTS) - {"set", "withdrawal.requested"}
    assert [step.at for step in made[:3]] == [2, 4, 6]


@pytest.mark.parametrize("withdrawals", ["outside", "inside"])
@pytest.mark.parametrize("polls_between", [0, 1])
async def test_a_wanderer_never_asks_for_the_impossible(withdrawals: str, polls_between: int) -> None:
    world = default_world()
    world.withdrawals = withdrawals  # type: ignore[assignment]

    async def until(_: float) -> None:
        for account in world.accounts() * polls_between:
            world.polled(account.key)

    await play(islice(wander(world, Random(5)), 3000), world, some_knobs(), until=until)
