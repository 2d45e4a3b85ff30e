"""A client of /v1, and what stands between a worker and programs that call it."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiohttp import ClientSession

from watcher.api.access import Address
from watcher.run.worker import Worker
from watcher.service.exposure import Exposure, exposed

OPERATORS = "the-token-of-the-operator"


class Said(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: Any
    raw: bytes


class Api:
    """Sends requests as the operator by default. `said` has the bodies of all answers."""

    def __init__(self, address: Address, session: ClientSession) -> None:
        self.address = address
        self.said = list[bytes]()
        self._session = session

    async def ask(self, method: str, path: str, token: str | None = OPERATORS, **more: Any) -> Said:
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        url = f"http://{self.address}/v1{path}"
        async with self._session.request(method, url, headers=headers, **more) as seen:
            body = await seen.read()
            self.said.append(body)
            is_json = seen.content_type.endswith("json")
            return Said(seen.status, seen.headers, json.loads(body) if body and is_json else None, body)

    async def get(self, path: str, token: str = OPERATORS, **query: Any) -> Said:
        return await self.ask("GET", path, token, params=query)

    async def names(self, path: str, **query: Any) -> list[str]:
        """The names of all items of a list, page by page."""
        found: list[str] = []
        while True:
            seen = (await self.get(path, **query)).data
            found += [item["name"] for item in seen["items"]]
            if not seen["next"]:
                return found
            query["after"] = seen["next"]


@asynccontextmanager
async def an_api_of(worker: Worker) -> AsyncIterator[Api]:
    """What `run --http --api` serves."""
    exposure = Exposure(Address("127.0.0.1", 0), OPERATORS, has_api=True)
    async with exposed(worker, exposure) as address, ClientSession() as session:
        assert address
        yield Api(address, session)
