"""A primary watched by Sentinels: found through them, found again after a failover, named in messages."""

import asyncio
import re

import pytest

from tests.support.sentinels import NAME, on_port, watched
from tests.support.servers import ENGINES, a_free_port, real_server
from watcher.store.address import Several, safe_url, several
from watcher.store.client import connect
from watcher.store.exceptions import ConfigurationRefused, StoreUnreachable
from watcher.store.guarantee import guarantee
from watcher.store.pipe import Pipe

PASSWORD = "canary-7f3a"  # no secret: it must never show


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_replica_that_takes_over_is_found_and_has_what_was_written(engine: str) -> None:
    port = a_free_port()
    with real_server(engine, *on_port(port)) as primary, watched(primary, port) as url:
        async with connect(url) as client:
            pipe = Pipe(client)
            assert "a failover may take back its last seconds" in (await guarantee(client)).sentence
            await pipe.command("SET", "x", "1")
            assert await pipe.command("WAIT", 1, 5000) == 1
            primary.kill()
            assert await _answer(pipe, "INCR", "x") == 2


async def test_a_name_that_no_sentinel_knows_is_a_configuration_error() -> None:
    port = a_free_port()
    with real_server("valkey", *on_port(port)) as primary, watched(primary, port) as url:
        async with connect(url.replace(NAME, "other")) as client:
            with pytest.raises(
                ConfigurationRefused, match=r"Sentinels in the URL of Redis do not know other, but main"
            ):
                await Pipe(client).command("PING")


async def test_a_server_that_is_no_sentinel_is_named_unless_another_sentinel_answers() -> None:
    port = a_free_port()
    with real_server("valkey", *on_port(port)) as primary, watched(primary, port) as url:
        async with connect(f"redis+sentinel://127.0.0.1:{port}/{NAME}") as client:
            with pytest.raises(
                ConfigurationRefused, match="is no Sentinel: name the server itself, by redis://"
            ):
                await Pipe(client).command("PING")
        async with connect(url.replace("//", f"//127.0.0.1:{port},")) as client:
            assert await Pipe(client).command("PING") == b"PONG"


async def _answer(pipe: Pipe, *command: str) -> object:
    """Ask until there is an answer: how a worker waits for a failover."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await pipe.command(*command)
            except StoreUnreachable:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("url", "found", "shown"),
    [
        (
            "redis+sentinel://one.example.com/main",
            Several("sentinel", (("one.example.com", 26379),), "main", "redis://main"),
            "redis+sentinel://one.example.com:26379/main",
        ),
        (
            f"rediss+sentinel://me:{PASSWORD}@one:1,[::1]:2/my-main.1/3?sentinel_password={PASSWORD}",
            Several(
                "sentinel",
                (("one", 1), ("::1", 2)),
                "my-main.1",
                f"rediss://me:{PASSWORD}@my-main.1/3?sentinel_password={PASSWORD}",
            ),
            "rediss+sentinel://one:1,[::1]:2/my-main.1/3",
        ),
    ],
)
def test_an_address_names_the_sentinels_and_their_primary(url: str, found: Several, shown: str) -> None:
    assert several(url) == found
    assert safe_url(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one",
        "redis+sentinel://one/",
        "redis+sentinel://o\tne/main",
        f"redis+sentinel://one:{PASSWORD}/main",
        f"redis+sentinel://one,:{PASSWORD}/main",
        f"redis+sentinel://one/main/{PASSWORD}",
        f"redis+sentinel://one/main?{PASSWORD}",
        f"redis+sentinel://one/main?decode_responses={PASSWORD}",
        f"redis+sentinel://me:12#{PASSWORD}@one/main",
        f"redis+sentinel://me:1/2{PASSWORD}@one/main",
    ],
)
def test_an_invalid_address_is_refused_and_never_quoted(url: str) -> None:
    with pytest.raises(ConfigurationRefused) as caught:
        connect(url)
    assert not re.search(PASSWORD, f"{caught.value}{caught.value.__cause__}{safe_url(url)}")
