"""Secrets planted in every possible place, a world in which they are used, and a search for them."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from aiohttp import web
from redis.asyncio import Redis

from tests.support.processes import killed_in_the_end, start
from watcher.receiver import Fail, Receiver
from watcher.sandbox.answers import Answer
from watcher.sandbox.server import Sandbox
from watcher.store.keys import Keys, shard_of

API_KEY = "probe_account-api-key-7f3a"
WRONG_KEY = "probe_account-wrong-key-11aa"
SHOP_KEY = "probe_account-shop-key-4ee9"
WRONG_SHOP_KEY = "probe_account-no-shop-key-8d21"
URL_TOKEN = "probe_account-url-token-91c2"
HEADER = "probe_account-header-55d0"
PASSWORD = "probe_account-password-c0de"
SECRET = "whsec_" + base64.b64encode(b"probe_account-signing-secret-of-32-bytes").decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"probe_account-secret-that-comes-next-32").decode()
HTTP_TOKEN = "probe_account-http-token-3b77"
DECLARED = {
    "BASIC": "probe_account-basic-2a90",
    "QUERY": "probe_account/query+key-77b1",
    "PLACE": "probe_account/path+key-e0c4",
    "LOCKED": "probe_account-declared-key-19f2",
    "NODE": "probe_account/node+key-5a3d",
}
EMAIL = "probe_account-person@example.com"

ENVIRONMENT: Mapping[str, str] = {
    "KEY": API_KEY,
    "WRONG": WRONG_KEY,
    "SHOP": SHOP_KEY,
    "WRONG_SHOP": WRONG_SHOP_KEY,
    "TOKEN": URL_TOKEN,
    "HEADER": HEADER,
    "SECRET": SECRET,
    "NEXT_SECRET": NEXT_SECRET,
    "PASSWORD": PASSWORD,
    **DECLARED,
    "EMAIL": EMAIL,
    "WATCHER_HTTP_TOKEN": HTTP_TOKEN,
    "LOG_LEVEL": "debug",
}

CONFIGURATION = """
[redis]
{redis}

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{loopring}"
api_key = "${{KEY}}"
requests_per_second = 100

[providers.locked_out]
kind = "loopring"
base_url = "{loopring}"
api_key = "${{WRONG}}"

[providers.shop]
kind = "metakeep"
base_url = "{metakeep}"
api_key = "${{SHOP}}"

[providers.shut]
kind = "metakeep"
base_url = "{metakeep}"
api_key = "${{WRONG_SHOP}}"

[providers.declared]
kind = "http"
base_url = "{loopring}"
headers = {{ x-api-key = "${{KEY}}" }}
secrets = {{ key = "${{QUERY}}" }}
error = "resultInfo.code"
ask = [{{ path = "/api/v3/user/balances", query = {{ accountId = "{{id}}", key = "{{key}}" }} }}]

[[providers.declared.read]]
rows = "@"
asset = "tokenId"
total = "total"

[providers.nowhere]
kind = "http"
base_url = "{loopring}"
basic = "user:${{BASIC}}"
headers = {{ x-api-key = "${{LOCKED}}" }}
secrets = {{ place = "${{PLACE}}" }}
ask = [{{ path = "/{{place}}/{{id}}" }}]
read = [{{ id = "BTC", total = "n" }}]

[providers.chain]
kind = "evm"
base_url = "{loopring}"
path = "/v2/{{api_key}}?key={{api_key}}"
api_key = "${{NODE}}"
chain_id = 1

[[accounts]]
name = "gas"
provider = "chain"
address = "0x00000000000000000000000000000000000ba11e"

[[accounts]]
name = "declared"
provider = "declared"
of = {{ id = 10110 }}

[[accounts]]
name = "nowhere"
provider = "nowhere"
of = {{ id = 10110 }}

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 10110
interval = "1s"

[[accounts]]
name = "outcast"
provider = "locked_out"
account_id = 10110

[[accounts]]
name = "nobody"
provider = "shop"
of = {{ email = "${{EMAIL}}" }}
currencies = ["0x1456b21890f920110190063921f6bc7f7b027fa6"]

[[accounts]]
name = "stranger"
provider = "shut"
of = {{ email = "${{EMAIL}}" }}
currencies = ["0x1456b21890f920110190063921f6bc7f7b027fa6"]

[[subscriptions]]
name = "ops"
url = "{receiver}in/${{TOKEN}}?token=${{TOKEN}}"
secrets = ["${{SECRET}}"]
headers = {{ authorization = "Bearer ${{HEADER}}" }}
retries = ["0s", "0s", "1s"]

[[subscriptions]]
name = "dead"
url = "http://127.0.0.1:1999/${{TOKEN}}"
secrets = ["${{SECRET}}"]

[[subscriptions]]
name = "parrot"
url = "{parrot}in/${{TOKEN}}?token=${{TOKEN}}"
secrets = ["${{SECRET}}"]
headers = {{ authorization = "Bearer ${{HEADER}}" }}
retries = ["0s", "0s"]
"""

MISTAKES: Mapping[str, str] = {
    'api_key = "${KEY}"': 'api_key = ["${KEY}", 7]',
    'kind = "metakeep"': 'kind = "${SHOP}"',
    'provider = "locked_out"': 'provider = "${WRONG}"',
    'interval = "1s"': 'interval = "${HEADER}"',
    "allow_http = true": 'allow_http = "${TOKEN}"',
    'retries = ["0s", "0s", "1s"]': 'retries = "${SECRET}"\npassword = "${PASSWORD}"',
    'retries = ["0s", "0s"]': 'events = ["${SECRET}", "${WATCHER_HTTP_TOKEN}"]',
}
"""Secrets of another type, in the place of something else, and under an unknown key."""


def with_mistakes(text: str) -> str:
    for good, bad in MISTAKES.items():
        assert good in text
        text = text.replace(good, bad)
    return text


def rotated(text: str) -> str:
    """The configuration with another signing secret, and other values wherever a secret may be given."""
    return text.replace('["${SECRET}"]', '["${NEXT_SECRET}", "${SECRET}"]').replace("?token=", "?next-token=")


@asynccontextmanager
async def a_world_with_canaries(redis: str) -> AsyncIterator[tuple[Sandbox, Receiver, str]]:
    """Both providers, a receiver, one that repeats what it is sent, and a configuration that leads to all."""
    receiver = Receiver(secrets=[SECRET, NEXT_SECRET], fail=Fail(500, 1))
    async with Sandbox() as sandbox, receiver, an_echo() as parrot:
        sandbox.loopring.requests_per_second = None
        sandbox.loopring.api_keys = {API_KEY}
        sandbox.loopring.error_messages = {104002: f"no such key: {WRONG_KEY}"}
        sandbox.metakeep.api_keys = {SHOP_KEY}
        repeated = {"status": f"no {SHOP_KEY}", "message": f"x-api-key: {SHOP_KEY}"}
        sandbox.metakeep.next_answers.append(Answer.json(repeated, 400))
        text = CONFIGURATION.format(
            redis=redis,
            loopring=sandbox.loopring_url,
            metakeep=sandbox.metakeep_url,
            receiver=receiver.url,
            parrot=parrot,
        )
        yield sandbox, receiver, text


@asynccontextmanager
async def an_echo() -> AsyncIterator[str]:
    """A subscriber that refuses everything, and says of it what frameworks and proxies say."""

    async def answer(request: web.BaseRequest) -> web.Response:
        bearer = request.headers["authorization"]
        said = f"Cannot POST {request.path_qs}; not a token: {bearer.split()[1]}; {bearer}"
        return web.Response(status=500, text=said)

    server = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def canaries_in(seen: bytes) -> list[str]:
    """Those that came out. The e-mail address is no secret, but private: only --show shows it."""
    secrets = (API_KEY, WRONG_KEY, SHOP_KEY, WRONG_SHOP_KEY, URL_TOKEN, HEADER, PASSWORD, HTTP_TOKEN)
    sent = [form for text in DECLARED.values() for form in (text, quote(text, safe=""))]
    sent.append(base64.b64encode(f"user:{DECLARED['BASIC']}".encode()).decode())
    signing = (SECRET, SECRET[6:], NEXT_SECRET, NEXT_SECRET[6:])
    for shown in (f'of = {{ email = "{EMAIL}" }}', f'"of": {{"email": "{EMAIL}"}}'):
        seen = seen.replace(shown.encode(), b"")
    return [
        probe_account
        for probe_account in (*secrets, *sent, *signing, EMAIL)
        if probe_account.encode() in seen
    ]


@asynccontextmanager
async def a_process(
    place: Path, out: IO[bytes] | int, *arguments: str, **more: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`watcher` with all that it says in one place; killed at the end if it still runs."""
    process = await start(place, {**ENVIRONMENT, **more}, *arguments, out=out)
    async with killed_in_the_end(process):
        yield process


async def damage(client: Redis) -> None:
    """Put something else where a schedule is, so that a worker meets what it did not plan for."""
    key = Keys("watcher").polls(shard_of("treasury"), "loopring")
    await client.delete(key)
    await client.set(key, "of another type")


async def everything_in(client: Redis) -> bytes:
    """Every key and value of a server, as one text."""
    readers: dict[Any, Callable[[Any], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
        b"none": client.get,  # gone meanwhile
    }
    seen = b""
    async for key in client.scan_iter():
        value = await readers[await client.type(key)](key)
        seen += key + repr(value).encode()
    return seen
