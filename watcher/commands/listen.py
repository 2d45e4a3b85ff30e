"""`watcher listen`: a receiver for trying things, that shows each event it takes."""

import json
from collections import Counter
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.receiver import Receipt
import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher import signals
from watcher.commands.secret import secret_options, secrets_given, verifying
from watcher.streams import CannotWrite

if TYPE_CHECKING:
    from watcher.captured import Captured
    from watcher.receiver import Receipt, Receiver

_ORDER = {
    "gap": "gap: #{previous} was queued before it and is not here",
    "late": "out of order: a later one is here already",
    "restart": "the sender starts anew: nothing was queued before it",
    "rewound": "the sender went back to #{previous}: it has lost what it queued since",
}


def receipt_text(receipt: "Receipt", now: float) -> str:
    at = f"{datetime.fromtimestamp(now).astimezone():%H:%M:%S}"
    if receipt.event is None:
        return f"{at}  refused: {receipt.problem}{_saved(receipt)}"
    event = receipt.event
    data, asset = _part(event, "data"), _part(event, "data", "asset")
    columns = [
        f"{_text(event.get('type')):<21}",
        f"{_text(_part(event, 'data', 'account').get('name')):<16}",
        f"{_text(asset.get('symbol') or asset.get('id')):<6}",
        f"{_text(data.get('amount')):>14}",
        f"{_effect(_part(event, 'data', 'effect')):<32}",
        f"#{_text(data.get('sequence'))}",
        "; ".join(_notes(receipt)) + _saved(receipt),
    ]
    return "  ".join([at, *columns])


def _saved(receipt: "Receipt") -> str:
    return f"; saved as {receipt.captured}" if receipt.captured else ""


def _notes(receipt: "Receipt") -> list[str]:
    notes = ["verified" if receipt.is_verified else "not verified: no secret was given"]
    if receipt.attempt > 1:
        notes.append(f"attempt {receipt.attempt} here")
    if receipt.is_repeat:
        notes.append("a repeat")
    if not receipt.is_taken:
        notes.append(f"answered {receipt.status}")
    if receipt.forwarded and not receipt.is_taken:
        notes.append(receipt.forwarded)
    if receipt.order:
        previous = _part(receipt.event, "subscription").get("previous_sequence")
        notes.append(_ORDER[receipt.order].format(previous=_text(previous)))
    return notes


def _effect(effect: dict[str, Any]) -> str:
    moved = {field: amount for field, amount in effect.items() if amount not in ("0", None)}
    return (
        ", ".join(f"{_text(field)} {_signed(_text(amount))}" for field, amount in moved.items())
        or "no effect"
    )


def _signed(amount: str) -> str:
    return amount if amount.startswith("-") else f"+{amount}"


def receipt_json(receipt: "Receipt") -> str:
    problem = receipt.problem
    told = {
        "verified": receipt.is_verified,
        "status": receipt.status,
        "attempt": receipt.attempt,
        "repeat": receipt.is_repeat,
        "order": receipt.order,
        "forwarded": receipt.forwarded,
        "saved": receipt.captured,
        "problem": {"step": problem.step, "detail": problem.detail} if problem else None,
        "event": receipt.event,
    }
    return json.dumps(told, default=str)  # ASCII alone, every control character escaped


def facts(receipt: "Receipt") -> list[str]:
    if receipt.event is None:
        return ["refused"]
    if not receipt.is_taken:
        return ["failed"]
    return ["repeats" if receipt.is_repeat else "events", *([receipt.order] if receipt.order else [])]


def summary(told: Counter[str]) -> str:
    restarts = many(told["restart"] + told["rewound"], "restart")
    return (
        f"took {many(told['events'], 'event')}; {many(told['repeats'], 'repeat')}, "
        f"{many(told['gap'], 'gap')}, {told['late']} out of order, {restarts}, "
        f"{told['failed']} not answered with 2xx, {told['refused']} refused"
    )


def _text(value: object) -> str:
    """Show text and numbers; what is neither has no place in a line, and its repr may be of any size."""
    return printable(str(value)) if isinstance(value, str | int | Decimal) else "-"


def _part(event: object, *path: str) -> dict[str, Any]:
    for key in path:
        event = event.get(key) if isinstance(event, dict) else None
    return event if isinstance(event, dict) else {}


_FAIL = re.compile(r"([2-5][0-9]{2}):([1-9][0-9]{0,5})\Z")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?(/[!-~]*)?\Z")
_LOOPBACK = "127.0.0.1"
"""Also for `--host "$HOST"` with an empty variable: an empty host would mean every address."""


@click.command("listen", short_help="Receive webhooks, verify and print them.")
@click.option("--host", default=_LOOPBACK, show_default=True, help="The address to listen at.")
@click.option(
    "--port", default=8788, show_default=True, type=click.IntRange(0, 65535), help="0: any free one."
)
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per attempt.")
@click.option("--forward-to", metavar="URL", help="POST what is genuine there too, and answer as it answers.")
@click.option(
    "--save",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each request, as it arrived, into a file there, for `watcher verify`.",
)
@click.option("--fail", metavar="STATUS:N", help="Answer the first N attempts of each event with STATUS.")
@click.option("--delay", default="0s", help="Wait so long before each answer, as in 2s.")
def command(
    *,
    host: str,
    port: int,
    secret_names: tuple[str, ...],
    secret_files: tuple[Path, ...],
    as_json: bool,
    forward_to: str | None,
    folder: Path | None,
    fail: str | None,
    delay: str,
) -> None:
    """Receive webhooks, verify and print them: one line per attempt, until Ctrl-C, SIGTERM or SIGHUP.

    Notices repeats, and gaps by `previous_sequence`. Without a secret nothing is verified. What fails to
    verify is answered with 400 and is not forwarded.
    """
    from watcher.receiver import Fail, Receiver

    host = host or _LOOPBACK
    secrets = verifying(secrets_given(secret_names, secret_files))
    told: Counter[str] = Counter()
    receiver = Receiver(
        secrets=secrets,
        fail=Fail(*_fail(fail)) if fail else None,
        delay_s=_seconds(delay),
        forward_to=_url(forward_to, host, port),
        host=host,
        port=port,
        keep=1,  # what is printed need not be remembered
    )
    if folder:
        receiver.capture = _saving(folder)
        given = [f" --secret-env {name}" for name in secret_names]
        given += [f" --secret-file {file}" for file in secret_files]
        secret = "".join(given) or " --secret-env NAME"
        click.echo(f"try each again: watcher verify{secret} {folder}/FILE", err=True)
    failure = asyncio.run(_listen(receiver, told, as_json=as_json))
    click.echo(summary(told), err=True)
    if failure:
        raise failure


async def _listen(receiver: "Receiver", told: Counter[str], *, as_json: bool) -> CannotWrite | None:
    """Listen until a signal comes, or nobody takes what is printed: returns why not."""
    stop = asyncio.Event()
    failure: CannotWrite | None = None

    def tell(receipt: "Receipt") -> None:
        nonlocal failure
        told.update(facts(receipt))
        try:
            click.echo(receipt_json(receipt) if as_json else receipt_text(receipt, time.time()))
        except CannotWrite as error:  # `watcher listen | head`, a full disk
            failure = error
            stop.set()

    receiver.notice = tell
    signals.take_over(asyncio.get_running_loop().call_soon_threadsafe, lambda _: stop.set())
    try:
        async with receiver:
            verified = "verifying" if receiver.secrets else "not verifying: no secret was given"
            click.echo(f"listening at {receiver.url}, {verified}", err=True)
            await stop.wait()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise click.ClickException(f"cannot listen at {receiver.host}:{receiver.port}: {reason}") from None
    return failure


def _fail(text: str) -> tuple[int, int]:
    match = _FAIL.match(text)
    if not match:
        raise click.BadParameter("write a status and a count, as in 503:2", param_hint="--fail")
    return int(match[1]), int(match[2])


def _seconds(text: str) -> float:
    from watcher.fields import parse_duration

    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--delay") from None


def _url(text: str | None, host: str, port: int) -> str | None:
    """Check where to forward to: a URL whose host and port can be dialled, and not this listener's own."""
    if text is None:
        return None
    from watcher.fields import as_written

    try:
        url = as_written(text)
        is_one = url.scheme in ("http", "https") and bool(url.host) and bool(url.port)
    except (ValueError, IndexError):
        is_one = False
    if not is_one or not text.isprintable() or " " in text:
        hint = f"; did you mean 'http://{text}'?" if _HOST_AND_PORT.match(text) else ""
        raise click.BadParameter(
            f"must begin with http:// or https://, and name a host{hint}",
            param_hint="--forward-to",
        )
    if url.port == port and url.host in (host, "127.0.0.1", "localhost", "::1"):
        raise click.BadParameter("that is this listener itself", param_hint="--forward-to")
    return text


def _saving(folder: Path) -> "Callable[[Captured], str | None]":
    """Make the directory, and return what writes a request there. What cannot be written is said, no more."""
    from watcher.captured import save

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make {folder}: {error.strerror}") from None

    def capture(captured: "Captured") -> str | None:
        try:
            return str(save(captured, folder))
        except OSError as error:
            click.echo(f"cannot save a request in {folder}: {error.strerror or error}", err=True)
            return None

    return capture
