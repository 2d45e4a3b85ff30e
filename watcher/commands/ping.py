"""`watcher ping`: one sample to one subscriber, past Redis and the worker, and what came of it.

Sends as a delivery is sent: the same format, signature, headers, bounds and egress guard.
"""

import secrets
import time
from pathlib import Path

import click

from watcher.commands._shared import (
    Unknown,
    config_option,
    in_a_loop,
    json_option,
    load_or_exit,
    names_of,
    subscription_named,
)
from watcher.commands._table import opened, say_json


def _types(_context: click.Context | None, _parameter: click.Parameter | None, begin: str) -> list[str]:
    from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS

    return [type_ for type_ in (*CHANGE_EVENTS, *SERVICE_EVENTS) if type_.startswith(begin)]


@click.command("ping", short_help="Send one sample to a subscriber.")
@config_option
@click.option(
    "--event",
    "type_",
    metavar="TYPE",
    default="subscription.ping",
    show_default=True,
    shell_complete=_types,
    help="Send a sample of this type of event.",
)
@json_option
@click.argument("name", metavar="SUBSCRIPTION", shell_complete=names_of("subscriptions"))
@in_a_loop
async def command(*, config_path: Path | None, type_: str, is_json: bool, name: str) -> int:
    """Send one sample event to SUBSCRIPTION, whatever events it asks for, and show the result.

    It is signed, or a message for people, depending on the subscription's format; at PagerDuty it opens an
    alert.

    It is sent at once by this command, also to a paused subscription: neither a worker nor Redis is needed,
    unless SUBSCRIPTION came through the API. It changes nothing: an unverified URL stays unverified. A sample
    of another type than `subscription.ping` is about an account called `sample`, and its data contain
    `"sample": true`.

    \b
    Examples:
      watcher ping ops
      watcher ping ops --event deposit.cleared

    Exit codes: 0 the answer was 2xx; 1 it was not, and what to do; 2 a usage error, or an unknown name; 69
    Redis cannot be reached; 78 the configuration is not valid.
    """
    from watcher.config.loading import Look
    from watcher.delivery.chat import target_of
    from watcher.delivery.egress import Policy
    from watcher.delivery.sink import remedy
    from watcher.delivery.webhook import WebhookSink
    from watcher.engine.breaker import Answer
    from watcher.journal.notices import sample

    if type_ not in (known := _types(None, None, "")):
        raise Unknown("type of event", type_, known)
    settings = load_or_exit(config_path).settings
    subscription = settings.subscription_by_name.get(name)
    if subscription is None and settings.api:
        async with opened(Look(settings)) as found:
            subscription = found.target(name)
    subscription = subscription or subscription_named(settings, name)
    egress = settings.egress
    policy = Policy(allow=egress.allow, allow_http=egress.allow_http, nat64=egress.nat64)
    event = sample(type_, name, nonce=secrets.token_hex(8), now_ms=int(1000 * time.time()))
    async with WebhookSink(policy) as sink:
        attempt = await sink.send(target_of(subscription, policy), [event.to(name)], 1)
    is_signed = subscription.format == "standard"
    is_taken = attempt.answer is Answer.DELIVERED
    todo = None if is_taken else remedy(attempt, is_signed=is_signed)
    if is_json:
        about = {"status": attempt.status, "error": attempt.error, "duration_ms": attempt.duration_ms}
        answer = {"answer": attempt.excerpt or None, "todo": todo}
        say_json({"subscription": name, "ok": is_taken, "event_id": event.id, **about, **answer})
        return 0 if is_taken else 1
    said = attempt.error or f"answered {attempt.status}"
    click.echo(f"{name}: {said}, after {attempt.duration_ms} ms ({event.id})")
    if is_taken:
        return 0
    if attempt.excerpt:
        click.echo(f"  it says: {attempt.excerpt}")
    click.echo(f"  what to do: {todo}")
    return 1
