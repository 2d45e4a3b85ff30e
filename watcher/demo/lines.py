"""The lines of the demonstration, for people: plain ASCII, aligned, with colours that `click.echo` may drop.

Refuses to print: the command does.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from statistics import median

import click

from watcher.demo.judge import Arrival, Made, Verdict
from watcher.demo.stage import NAME_BY_ACCOUNT, Scene, Stage
from watcher.printable import many
from watcher.receiver import Receipt
from watcher.sandbox import bank
from watcher.sandbox.book import Holding, Move
from watcher.sandbox.loopring import BALANCES
from watcher.sandbox.metakeep import BALANCE
from watcher.sandbox.script import Step
from watcher.sandbox.world import ACME, ALICE, METAKEEP_ASSETS, TREASURY

_NEXT_IF_GOOD = (
    ("watcher recipes", "list what can be watched, some of it without a key"),
    ("watcher init --provider ethereum", "write a watcher.toml that watches a public address"),
    ("watcher check", "find every mistake in it, before anything runs"),
    ("watcher run", "poll, compare and deliver"),
)
_NEXT_IF_NOT = (("watcher demo --verbose", "the same, with the worker's log"),)


def opening_lines(interval: timedelta) -> Iterator[str]:
    """Say what the demonstration will show."""
    yield "Three simulated providers, a worker with its own server, a receiver that verifies every signature."
    yield (
        f"Accounts are polled every {interval // timedelta(milliseconds=1)} ms. "
        "Each change is made once the one before was reported."
    )
    yield ""
    yield _row("account", "at the provider", "verified webhook", "after", "amount")


def scene_lines(scene: Scene, made: Made | None, arrival: Arrival | None) -> Iterator[str]:
    """Show a finished scene: the change, and its event."""
    if scene.heading:
        yield click.style(f"  {scene.heading}", dim=True)
    if made is None:
        fault = scene.step.options
        yield _row(fault["provider"], fault["fault"], _good("nothing"))
        return
    amount = f"{made.amount} {made.symbol}"
    if arrival is None:
        yield _row(made.account, made.do, _bad("NOT REPORTED in time"), "", amount)
        return
    reported, after = _amount(arrival.receipt), f"{1000 * (arrival.at_s - made.at_s):.0f} ms"
    if reported not in ("", amount):
        amount += f", {_bad(f'reported as {reported}')}"
    yield _row(made.account, made.do, _type(arrival.receipt), after, amount)


def verdict_lines(verdict: Verdict, took_s: float) -> Iterator[str]:
    """Say the verdict, how long it took, and what to do next."""
    yield ""
    counts = f"{many(verdict.made, 'change')} made, {many(verdict.verified, 'event')} verified"
    if verdict.is_good:
        yield f"{_good('PASSED')}  {counts}: each exactly once, in order, and together they"
        yield "        add up, to the last digit, to what the providers say now."
    else:
        yield f"{_bad('FAILED')}  {counts}; these promises were not kept:"
        yield from (f"        {broken}" for broken in verdict.broken)
    latency = ""
    if verdict.latencies_ms:
        usual, longest = median(verdict.latencies_ms), max(verdict.latencies_ms)
        latency = f"From a change to its webhook: {usual:.0f} ms usually, {longest:.0f} ms at most. "
    yield f"        {latency}{took_s:.1f} s in all."
    yield ""
    yield "Next:"
    commands = _NEXT_IF_GOOD if verdict.is_good else _NEXT_IF_NOT
    width = max(len(command) for command, _ in commands)
    yield from (f"  {click.style(f'{command:<{width}}', bold=True)}  {what}" for command, what in commands)


def place_lines(stage: Stage, page: str) -> Iterator[str]:
    """Say the addresses of all parts, for a user to call them directly."""
    loopring, metakeep = stage.sandbox.loopring_url + BALANCES, stage.sandbox.metakeep_url + BALANCE
    acme = stage.sandbox.bank_url + bank.BALANCES.format(account=ACME)
    asked = {"of": {"email": ALICE}, "coins": {"currencies": [METAKEEP_ASSETS[0].id]}}
    yield ""
    yield "It goes on with a change every few seconds, until Ctrl-C. Watch it in a browser:"
    yield f"  {page}"
    yield "The providers answer you, too:"
    yield f"  curl -H 'X-API-KEY: sandbox' '{loopring}?accountId={TREASURY}'"
    yield f"  curl -H 'x-api-key: sandbox' -d '{json.dumps(asked)}' {metakeep}"
    yield f"  curl -H 'Authorization: Bearer sandbox' {acme}"
    yield ""


def move_line(move: Move) -> str:
    """Show a movement at a provider, or the half of one, as it happens."""
    fields = zip(Holding._fields, move.effect, strict=True)
    moved = ", ".join(
        f"{name} {'+' * (units > 0)}{move.asset.text(units)}" for name, units in fields if units
    )
    return f"  {NAME_BY_ACCOUNT[move.account.key]:<8}  {move.do:<20}  {move.asset.symbol}: {moved}"


def step_lines(step: Step) -> Iterator[str]:
    """Show how a step changes a provider's answers; movements show by themselves."""
    if step.do == "fault":
        answers = step.options.get("answers", 1)
        yield f"  {step.options['provider']:<8}  {step.options['fault']}, {answers}x"


def webhook_line(receipt: Receipt) -> str:
    """Show a webhook as it arrives, below the account that it is about."""
    account = receipt.event["data"]["account"]["name"] if receipt.event else ""
    return f"  {account:<8}  ->  {_type(receipt)}  {_amount(receipt)}".rstrip()


def _type(receipt: Receipt) -> str:
    """Name the event of a webhook, if it is genuine."""
    if receipt.event is None or not receipt.is_verified:
        return _bad(f"NOT VERIFIED: {receipt.problem}")
    return _good(receipt.event["type"])


def _amount(receipt: Receipt) -> str:
    if receipt.event is None:
        return ""
    data = receipt.event["data"]
    return f"{data['amount']} {data['asset']['symbol'] or data['asset']['id']}"


def _row(account: str, do: str, event: str, after: str = "", amount: str = "") -> str:
    event += " " * (19 - len(click.unstyle(event)))  # a colour takes no room
    return f"  {account:<8}  {do:<20}  ->  {event}  {after:>7}  {amount}".rstrip()


def _good(text: str) -> str:
    return click.style(text, fg="green")


def _bad(text: str) -> str:
    return click.style(text, fg="red", bold=True)
