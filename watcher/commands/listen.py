"""`watcher listen`: a receiver for trying things, that shows each event it takes."""

import asyncio
import json
import re
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher import signals
from watcher.commands._shared import given_by
from watcher.commands._table import about_text, part_of, text_of
from watcher.commands.secret import secret_options, secrets_given, verifying
from watcher.durations import parse_duration
from watcher.printable import many, why_not_listening
from watcher.streams import CannotWrite

if TYPE_CHECKING:
    from watcher.captured import Captured
    from watcher.receiver import Receipt, Receiver

_FAIL = re.compile(r"([2-5][0-9]{2}):([1-9][0-9]{0,5})\Z")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?(/[!-~]*)?\Z")
_LOOPBACK = "127.0.0.1"
"""Also for `--host "$HOST"` with an empty variable: an empty host would mean every address."""
_ORDER = {
    "gap": "gap: #{previous} was queued before it and is not here",
    "late": "out of order: a later one is here already",
    "restart": "the sender starts anew: nothing was queued before it",
    "rewound": "the sender went back to #{previous}: it has lost what it queued since",
}


@click.command("listen", short_help="Receive webhooks, verify and print them.")
@click.option("--host", default=_LOOPBACK, show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    default=8788,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The port to listen at; 0 is any free one.",
)
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per attempt.")
@click.option(
    "--forward-to", metavar="URL", help="Also POST verified requests to this URL, and answer as it answers."
)
@click.option(
    "--save",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each request, as it arrived, to a file in this folder, for `watcher verify`.",
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

    \b
    Examples:
      watcher listen --secret-env OPS_SECRET
      watcher listen --fail 503:2 --save captured

    Exit codes: 0 it ended on a signal; 1 it cannot listen there; 2 a usage error.
    """
    from watcher.receiver import Fail, Receiver

    host = host or _LOOPBACK
    secrets = verifying(secrets_given(secret_names, secret_files))
    failing = _FAIL.match(fail) if fail else None
    if fail and not failing:
        raise click.BadParameter("write a status and a count, as in 503:2", param_hint="--fail")
    with given_by("--delay"):
        delay_s = parse_duration(delay).total_seconds()
    receiver = Receiver(
        secrets=secrets,
        fail=Fail(int(failing[1]), int(failing[2])) if failing else None,
        delay_s=delay_s,
        forward_to=_url(forward_to, host, port) if forward_to is not None else None,
        host=host,
        port=port,
        keep=1,  # what is printed need not be remembered
    )
    if folder:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise click.ClickException(f"cannot make {folder}: {error.strerror}") from None
        given = [f" --secret-env {name}" for name in secret_names]
        given += [f" --secret-file {file}" for file in secret_files]
        secret = "".join(given) or " --secret-env NAME"
        click.echo(f"try each again: watcher verify{secret} {folder}/FILE", err=True)
    counts: Counter[str] = Counter()
    failure = asyncio.run(_listen(receiver, folder, counts, as_json=as_json))
    click.echo(summary(counts), err=True)
    if failure:
        raise failure


def _url(text: str, host: str, port: int) -> str:
    """Check where to forward to: a URL whose host and port can be dialled, and not this listener's own."""
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


async def _listen(
    receiver: "Receiver", folder: Path | None, counts: Counter[str], *, as_json: bool
) -> CannotWrite | None:
    """Listen until a signal comes, or stdout takes no more; returns why.

    Each request is saved in `folder`; one that cannot be saved is answered all the same.
    """
    from watcher.captured import save

    stop = asyncio.Event()
    failure: CannotWrite | None = None

    def notice(receipt: "Receipt") -> None:
        nonlocal failure
        counts.update(facts(receipt))
        try:
            click.echo(receipt_json(receipt) if as_json else receipt_text(receipt, time.time()))
        except CannotWrite as error:  # `watcher listen | head`, a full disk
            failure = error
            stop.set()

    def capture(captured: "Captured") -> str | None:
        try:
            return str(save(captured, folder)) if folder else None
        except OSError as error:
            click.echo(f"cannot save a request in {folder}: {error.strerror or error}", err=True)
            return None

    receiver.notice, receiver.capture = notice, capture
    signals.take_over(asyncio.get_running_loop().call_soon_threadsafe, lambda _: stop.set())
    try:
        async with receiver:
            without = "not verifying: no secret was given (--secret-env NAME)"
            verified = "verifying" if receiver.secrets else without
            click.echo(f"listening at {receiver.url}, {verified}", err=True)
            await stop.wait()
    except (OSError, UnicodeError) as error:
        reason = why_not_listening(error) if isinstance(error, OSError) else "not a host name"
        raise click.ClickException(f"cannot listen at {receiver.host}:{receiver.port}: {reason}") from None
    return failure


def receipt_text(receipt: "Receipt", now: float) -> str:
    at = f"{datetime.fromtimestamp(now).astimezone():%H:%M:%S}"
    saved = f"; saved as {receipt.captured}" if receipt.captured else ""
    if receipt.event is None:
        return f"{at}  refused: {receipt.problem}{saved}"
    event = receipt.event
    data, asset = part_of(event, "data"), part_of(event, "data", "asset")
    previous = text_of(part_of(event, "subscription").get("previous_sequence"))
    notes = (
        "verified" if receipt.is_verified else "not verified: no secret was given",
        f"attempt {receipt.attempt} here" if receipt.attempt > 1 else "",
        "a repeat" if receipt.is_repeat else "",
        "" if receipt.is_taken else f"answered {receipt.status}",
        "" if receipt.is_taken else receipt.forwarded,
        _ORDER[receipt.order].format(previous=previous) if receipt.order else "",
    )
    columns = [
        f"{text_of(event.get('type')):<21}",
        f"{text_of(part_of(data, 'account').get('name')):<16}",
        f"{text_of(asset.get('symbol') or asset.get('id')):<6}",
        f"{text_of(data.get('amount')):>14}",
        f"{about_text(data) or 'no effect':<32}",
        f"#{text_of(data.get('sequence'))}",
        "; ".join(filter(None, notes)) + saved,
    ]
    return "  ".join([at, *columns])


def receipt_json(receipt: "Receipt") -> str:
    problem = receipt.problem
    line = {
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
    return json.dumps(line, default=str)  # ASCII alone, every control character escaped


def facts(receipt: "Receipt") -> list[str]:
    if receipt.event is None:
        return ["refused"]
    if not receipt.is_taken:
        return ["failed"]
    return ["repeats" if receipt.is_repeat else "events", *([receipt.order] if receipt.order else [])]


def summary(counts: Counter[str]) -> str:
    restarts = many(counts["restart"] + counts["rewound"], "restart")
    return (
        f"took {many(counts['events'], 'event')}; {many(counts['repeats'], 'repeat')}, "
        f"{many(counts['gap'], 'gap')}, {counts['late']} out of order, {restarts}, "
        f"{counts['failed']} not answered with 2xx, {counts['refused']} refused"
    )
