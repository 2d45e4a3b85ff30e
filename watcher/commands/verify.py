"""`watcher verify`: check one captured webhook and show each step.

Refuses to judge by rules of its own: `watcher.receive.verify` decides, this only says how far it came.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import click

from watcher.captured import read
from watcher.commands.secret import secret_options, secrets_given, verifying
from watcher.printable import printable
from watcher.receive import TOLERANCE_S, InvalidWebhook, Step, verify

_Headers = dict[str, list[Any]]
"""Values by lower-case name."""

_CHECKS: tuple[tuple[str, str, frozenset[Step]], ...] = (
    (
        "headers",
        "webhook-id, webhook-timestamp and webhook-signature are there",
        frozenset({Step.MISSING_HEADER}),
    ),
    ("id", "webhook-id is visible ASCII without a '.'", frozenset({Step.MALFORMED_ID})),
    ("timestamp", "webhook-timestamp is Unix seconds", frozenset({Step.MALFORMED_TIMESTAMP})),
    ("age", "the attempt is recent enough", frozenset({Step.TOO_OLD, Step.TOO_NEW})),
    (
        "signature",
        "webhook-signature holds a signature of a known version",
        frozenset({Step.MALFORMED_SIGNATURE}),
    ),
    ("match", "a secret given here made it, over exactly these bytes", frozenset({Step.NO_MATCH})),
    ("body", "the body is a JSON object", frozenset({Step.NOT_JSON})),
)


@click.command("verify", short_help="Check the signature of a captured webhook.")
@secret_options
@click.option(
    "-H", "--header", "lines", multiple=True, metavar="'NAME: VALUE'", help="A header of the request."
)
@click.option(
    "--headers",
    "headers_file",
    type=click.File("r", errors="replace"),
    help="A file of headers: one `name: value` a line, or a JSON object.",
)
@click.option("--any-age", is_flag=True, help=f"Allow any age; {TOLERANCE_S} s otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("body_file", type=click.File("rb"), default="-")
@click.pass_context
def command(
    context: click.Context,
    *,
    secret_names: tuple[str, ...],
    secret_files: tuple[Path, ...],
    lines: tuple[str, ...],
    headers_file: Iterable[str] | None,
    any_age: bool,
    as_json: bool,
    body_file: BinaryIO,
) -> None:
    """Check a captured webhook: its headers, and the bytes of its body in BODY_FILE (`-`: stdin).

    A file that `watcher listen --save DIR` wrote, or another one of a whole request, holds both. Says what is
    checked, step by step, and which step fails.

    \b
    Examples:
      watcher verify --secret-env OPS_SECRET captured.http
      watcher verify --secret-file secret.txt --headers headers.txt body.json

    Exit codes: 0 it is genuine; 1 it is not; 2 a usage error.
    """
    secrets = verifying(secrets_given(secret_names, secret_files))
    if not secrets:
        raise click.UsageError("give --secret-env or --secret-file: what to verify with")
    headers = _from_file(headers_file) | _from_lines(lines)
    body, now = body_file.read(), time.time()
    if captured := read(body):
        headers = _by_name(captured.headers) | headers
        body, now = captured.body, captured.received_at or now
    tolerance_s = math.inf if any_age else TOLERANCE_S
    problem = _problem(headers, body, secrets, now=now, tolerance_s=tolerance_s)
    hint = _hint(problem, headers, body, secrets) if problem else None
    if as_json:
        failed = {"step": problem.step, "detail": problem.detail, "hint": hint} if problem else {}
        click.echo(json.dumps({"verified": problem is None, **failed}))
    else:
        is_reached = True
        for check, claim, failures in _CHECKS:
            if problem and problem.step in failures:
                is_reached = False
                click.echo(f"{'FAILED':<8}{check:<11}{problem}")
            else:
                verdict, text = ("ok", claim) if is_reached else ("-", "not checked")
                click.echo(f"{verdict:<8}{check:<11}{text}")
        if hint:
            click.echo(f"{'':<8}{'hint':<11}{hint}")
        click.echo(f"not to be trusted: {problem.step}" if problem else "genuine")
    context.exit(1 if problem else 0)


def _problem(
    headers: _Headers, body: bytes, secrets: Sequence[str], *, now: float, tolerance_s: float
) -> InvalidWebhook | None:
    try:
        verify(headers, body, secrets, now=now, tolerance_s=tolerance_s)
    except InvalidWebhook as problem:
        return problem
    return None


def _hint(problem: InvalidWebhook, headers: _Headers, body: bytes, secrets: Sequence[str]) -> str | None:
    """Guess what went wrong on the way here, and prove the guess where that is possible."""
    if problem.step is Step.TOO_OLD:
        return "a webhook that was captured earlier needs --any-age"
    if problem.step is not Step.NO_MATCH:
        return None
    originals = {
        "without the line break at the end": body.rstrip(b"\r\n"),
        "with a line break at the end": body + b"\n",
    }
    with suppress(ValueError, RecursionError):
        minified = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False)
        originals["written as JSON without spaces"] = minified.encode()
    for name, other in originals.items():
        if other != body and not _problem(headers, other, secrets, now=0, tolerance_s=math.inf):
            return f"these are not the bytes that were sent: {name} it matches"
    return "the secret is another one, or the body was changed on its way: use the bytes as they arrived"


def _from_file(file: Iterable[str] | None) -> _Headers:
    text = "".join(file or ())
    if not text.lstrip().startswith(("{", "[")):
        # What is no header is skipped, so that a request's first line may be in the file.
        return _from_lines(line for line in text.splitlines() if ":" in line)
    try:
        headers = json.loads(text)
        return _by_name(headers.items() if isinstance(headers, dict) else headers)
    except (ValueError, TypeError, RecursionError):
        raise click.UsageError("the file of headers begins like JSON, but is no object or pairs") from None


def _from_lines(lines: Iterable[str]) -> _Headers:
    headers: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise click.UsageError(f"not a header, there is no colon in it: {printable(line, 40)}")
        headers.append((name.strip(), value.strip()))
    return _by_name(headers)


def _by_name(headers: Iterable[tuple[str, Any]]) -> _Headers:
    """Gather the values of each header, whatever the case of its name."""
    found: _Headers = {}
    for name, value in headers:
        found.setdefault(str(name).lower(), []).extend(value if isinstance(value, list) else [value])
    return found
