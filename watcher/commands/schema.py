"""`watcher schema`: the published shapes, for other programs."""

import json

import click

from watcher.commands._table import say_next


@click.command("schema", short_help="The catalogue of events, and the API, as OpenAPI.")
@click.argument("what", type=click.Choice(["events", "api"]))
def command(*, what: str) -> None:
    """Print an OpenAPI 3.1 document: the catalogue of events, one webhook per type; or the API.

    What a worker serves at /v1/openapi.json also names the providers of its configuration.

    \b
    Examples:
      watcher schema events > events.json
      watcher schema api > api.json

    Exit codes: 0 done; 2 a usage error.
    """
    if what == "events":
        from watcher.schema import openapi

        click.echo(json.dumps(openapi(), indent=2))
        say_next("watcher events --json, for events that were emitted")
        return
    from watcher.api.openapi import openapi as openapi_of_the_api

    click.echo(json.dumps(openapi_of_the_api(), indent=2))
    say_next("watcher run --http 127.0.0.1:8787 --api, to serve it")
