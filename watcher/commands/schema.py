"""`watcher schema`: the published shapes, for other programs."""

import json

import click

from watcher.commands._table import say_next


@click.command("schema", short_help="The catalogue of events, as OpenAPI.")
@click.argument("what", type=click.Choice(["events"]))
def command(*, what: str) -> None:
    """Print the catalogue of events as an OpenAPI 3.1 document: one webhook per type."""
    from watcher.schema import openapi

    assert what == "events"
    click.echo(json.dumps(openapi(), indent=2))
    say_next("watcher events --json, for events that were emitted")
