"""Reads `/metrics` as Prometheus would; starts proxies between a worker and a scraper."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from watcher.api.access import parse_address
from watcher.api.server import Listener
from watcher.observe.metrics import routes
from watcher.run.worker import Worker


class Scrape(NamedTuple):
    """One scrape: its text, and every sample in it."""

    text: str
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def sum(self, name: str, **labels: str) -> float:
        """Add up what has these labels, and any others."""
        return sum(
            value for (shown, at), value in self.samples.items() if shown == name and labels.items() <= {*at}
        )

    def has(self, name: str) -> bool:
        return any(shown == name for shown, _ in self.samples)


def parsed(text: str) -> Scrape:
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    return Scrape(text, {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})


class Seen(NamedTuple):
    """One answer of a listener."""

    status: int
    headers: Mapping[str, str]
    body: str


async def said(port: int, request: bytes, *, host: str = "127.0.0.1") -> bytes:
    """Send these bytes over a connection of their own; returns all that comes back."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


async def get(port: int, path: str, *more: str) -> Seen:
    lines = (f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *more, "", "")
    answer = await said(port, "\r\n".join(lines).encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in rest)
    assert int(headers["content-length"]) == len(body)
    return Seen(int(first.split(" ")[1]), headers, body.decode())


@asynccontextmanager
async def a_listener_of(worker: Worker) -> AsyncIterator[int]:
    """What `--http` serves; gives the port."""
    async with Listener(parse_address("127.0.0.1:0"), routes(worker)) as listener:
        yield listener.address.port


async def scrape(port: int) -> Scrape:
    answer = await get(port, "/metrics")
    assert answer.status == 200
    return parsed(answer.body)
