"""Tries everything that a configuration leads to: the server, providers, subscribers; side by side.

A subscriber is tried up to its TLS: name, address, connection, certificate. Every address passes the egress
policy. Refuses to send a subscriber a request: nothing is sent inside the connection.
"""

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

from aiohttp.abc import AbstractResolver
from yarl import URL

from watcher.delivery.egress import Policy, check_url
from watcher.encryption import Keyring, Undecryptable
from watcher.http.dial import Dialer, EgressRefused, NoConnection
from watcher.printable import many, printable
from watcher.providers.contract import ErrorClass, Rejected, provider_class, todo
from watcher.providers.declared import HttpSettings
from watcher.providers.http import ProviderClient
from watcher.settings import AccountSettings, ProviderSettings, Settings, SubscriptionSettings
from watcher.store.address import safe_url
from watcher.store.directory import Directory, Record
from watcher.store.embedded import find_engine, is_made
from watcher.store.exceptions import StoreError
from watcher.store.guarantee import guarantee_of_all, missing_rights
from watcher.store.opening import OpenStore, open_store
from watcher.store.reader import Reader
from watcher.tls_flaws import CANNOT_CONNECT, HUNG_UP, cannot_connect, tls_flaw

Verdict = Literal["ok", "warning", "failed"]
Kind = Literal["redis", "rights", "directory", "accounts", "provider", "clock", "subscription"]


class Tried(NamedTuple):
    """One line of `check --connect`. `todo` is for a person to act on, if the verdict is not ok."""

    kind: Kind
    name: str
    verdict: Verdict
    text: str
    todo: str | None = None


_ACL = "allow them as deploy/users.acl does"
_MOST_NAMES = 8
_SLOW_MS = 100
"""A commit waits for one round trip: with such a long one, a worker commits a few hundred polls a second at
best."""


async def try_server(file: Settings) -> AsyncIterator[Tried]:
    """Say whether the server can be used. If it answers, also say what its user may do, whether records of
    the API can be decrypted, and whether accounts are polled that neither the API nor the file defines."""
    settings = file.redis
    url = settings.url.get_secret_value()
    name = safe_url(url)
    try:
        if url == "embedded" and not is_made(settings.data_dir):
            engine = find_engine()
            folder = settings.data_dir.absolute()
            yield Tried("redis", name, "ok", f"`watcher run` will start {engine.name} in {folder}")
            return
        async with open_store(settings) as store:
            started = time.monotonic()
            await Reader(store.pipe, store.keys).now_ms()  # TIME is allowed where PING is not
            trip_ms = 1000 * (time.monotonic() - started)
            found = await guarantee_of_all(store.pipe)
            text = (
                f"answers in {trip_ms:.0f} ms; eviction {found.eviction}, persistence {found.persistence}; "
            )
            todo = "; ".join(found.warnings)
            if not todo and found.persistence == "none":
                todo = "set appendonly yes on the server"
            elif not todo and trip_ms > _SLOW_MS:
                todo = "use a server that is closer"
            yield Tried("redis", name, "warning" if todo else "ok", text + found.sentence, todo or None)
            may = await _may(store, name)
            yield may
            if may.verdict != "ok":
                return
            directory, records = Directory(store.pipe, store.keys), list[Record]()
            if any((await directory.counts()).values()):
                records = [record async for held in directory.read_all() for record in held.records]
            if records:
                yield _opened(file, name, records)
            known = {one.name for one in records if one.kind == "account"} | file.account_by_name.keys()
            scheduled = await Reader(store.pipe, store.keys).scheduled()
            gone = sorted(scheduled.keys() - known)
            if gone:
                names = ", ".join(gone[:_MOST_NAMES]) + (", …" if len(gone) > _MOST_NAMES else "")
                text = f"polled now, but not in this file: {many(len(gone), 'account')} ({names})"
                todo = "if the file was cut short, restore it: a worker that reads it as it is removes them"
                yield Tried("accounts", name, "warning", text, todo)
    except StoreError as error:
        yield Tried("redis", name, "failed", str(error), _FIX_REDIS)


def _opened(file: Settings, name: str, records: Sequence[Record]) -> Tried:
    """Say whether the file's keys decrypt what came through the API."""
    reasons = Counter[str]()
    if file.api:
        keyring = Keyring([key.get_secret_value() for key in file.api.secret_key], file.redis.namespace)
        for one in records:
            try:
                keyring.decrypt(one.kind, one.name, one.plain, one.encrypted)
            except Undecryptable as error:
                reasons[str(error)] += 1
    else:
        reasons["this file has no [api] secret_key"] = len(records)
    if not reasons:
        return Tried("directory", name, "ok", f"the key decrypts {many(len(records), 'record')} of the API")
    locked = f"{reasons.total():,} of {many(len(records), 'record')} of the API cannot be decrypted"
    todo = "put the key that encrypted them into [api] secret_key: a worker without it leaves them to others"
    return Tried("directory", name, "warning", f"{locked}: {'; '.join(reasons)}", todo)


async def _may(store: OpenStore, name: str) -> Tried:
    where = f"keys {store.keys.namespace}:*"
    try:
        missing = await missing_rights(store.pipe, store.keys)
    except StoreError as error:
        return Tried("rights", name, "failed", str(error), f"let its user run scripts on {where}; {_ACL}")
    if missing:
        text = f"its user may not use {', '.join(missing)} on {where}"
        return Tried("rights", name, "failed", text, _ACL)
    return Tried("rights", name, "ok", f"its user may do what watcher does, on {where}")


_FIX_REDIS = "fix redis.url (or REDIS_URL, which wins) or the server: until then no worker starts"

_ALIKE_S = 2
"""Seconds: a Date has whole ones, and many servers write it once a second."""

_SKEWED_S = 30
_FAR_OFF_S = 300
"""Seconds: a receiver refuses a signature whose timestamp is further off."""

_TODO: dict[ErrorClass, str] = {
    "configuration": "look at how [[accounts]] {account} is addressed, and at base_url in [providers.{name}]",
    "transient": "try again; if it stays so, look at base_url in [providers.{name}]",
}
"""What this says in other words than `status`, which knows many accounts and waits by itself."""
_DECLARED = "; then save an answer: watcher check --recipe FILE --answer ANSWER.json shows what is read in it"


async def try_provider(
    settings: ProviderSettings, account: AccountSettings | None, *, has_api: bool = False
) -> AsyncIterator[Tried]:
    """Return the result of one poll, and, if there was an answer, how far the clocks are apart."""
    name = settings.name
    if account is None and has_api:
        yield Tried("provider", name, "ok", "not tried: no account of the file uses it")
        return
    if account is None:
        yield Tried("provider", name, "warning", "not polled", "no account uses it: add one, or remove it")
        return
    async with ProviderClient(provider_class(settings.kind)(settings), settings, notes_date=True) as client:
        started = time.monotonic()
        try:
            snapshot = await client.read(account, await client.ask(account))
        except Rejected as error:
            says_status = error.status is None or f"({error.status})" in error.words
            status = "" if says_status else f" (status {error.status})"
            detail = f" ({error.detail})" if error.detail else ""
            text = f"{error.error_class}: {error.words}{status}{detail}"
            here = _TODO.get(error.error_class, "").format(name=name, account=account.name)
            advice = error.fix or here or todo(error.error_class, name) or ""
            if not error.fix and error.error_class == "malformed" and isinstance(settings, HttpSettings):
                advice += _DECLARED
            tried = Tried(
                "provider", name, "warning" if error.error_class == "rate" else "failed", text, advice or None
            )
        else:
            took_ms = 1000 * (time.monotonic() - started)
            assets = many(len(snapshot.row_by_asset), "asset")
            text = f"a poll of {account.name} took {took_ms:.0f} ms and found {assets}"
            tried = Tried("provider", name, "ok", text)
        yield tried
        if client.dated:
            yield clock(name, *client.dated)


def clock(name: str, date: str, here: datetime) -> Tried:
    """Compare our time with the `Date` of an answer: it has whole seconds, and is as old as its way here was
    long."""
    try:
        there = parsedate_to_datetime(date)
    except ValueError:
        return Tried("clock", name, "warning", "its Date cannot be read", "compare the clocks by hand")
    apart_s = (here - (there if there.tzinfo else there.replace(tzinfo=UTC))).total_seconds()
    text = f"this machine's clock is {abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} its Date"
    if abs(apart_s) < _ALIKE_S:
        return Tried("clock", name, "ok", "this machine's clock agrees with its Date")
    if abs(apart_s) < _SKEWED_S:
        return Tried("clock", name, "ok", text)
    verdict: Verdict = "failed" if abs(apart_s) >= _FAR_OFF_S else "warning"
    return Tried("clock", name, verdict, text, "set the clock (NTP): receivers refuse what is 5 minutes off")


_SOON = timedelta(days=14)


async def try_subscriber(
    settings: SubscriptionSettings, policy: Policy, *, resolver: AbstractResolver | None = None
) -> Tried:
    """Connect to where events would be POSTed, and send nothing."""
    name, url = settings.name, check_url(settings.url.get_secret_value(), policy)
    reached, now = await reach(url, policy, resolver=resolver), datetime.now(UTC)
    origin = printable(str(url.origin()))
    if reached.is_refused_by_us:
        todo = "if this address is yours, add it to [egress] allow; no byte was sent there"
        return Tried("subscription", name, "failed", f"{origin}: {reached.error}", todo)
    if reached.error:
        todo = "check whether it listens at that port, and the firewalls in between"
        if "resolve" in reached.error:
            todo = "look at the host name in its url, and at the DNS of this machine"
        return Tried("subscription", name, "failed", f"{origin}: {reached.error}", reached.fix or todo)
    if reached.ends_at and reached.ends_at - now < _SOON:
        text = f"{origin}: its certificate ends at {reached.ends_at:%Y-%m-%d %H:%M} UTC"
        return Tried("subscription", name, "warning", text, "have it renewed")
    way = "TLS is good" if url.scheme == "https" else "it can be reached, without TLS"
    return Tried("subscription", name, "ok", f"{origin}: {way}; nothing was sent")


LIMIT_S = 15.0
"""Longer than Redis and a slow handshake take; a provider has its own `timeout` on top."""

_AT_ONCE = 64


class Trial(NamedTuple):
    """One thing to try, and how long that may take."""

    kind: Kind
    name: str
    limit_s: float
    run: Callable[[], AsyncIterator[Tried]]


def trials(settings: Settings, *, limit_s: float = LIMIT_S) -> list[Trial]:
    """List what there is to try: the server, each provider by its first account, each subscriber."""
    policy = Policy.of(settings.egress)
    first = {account.provider: account for account in reversed(settings.account_by_name.values())}
    found = [Trial("redis", "redis", limit_s, lambda: try_server(settings))]
    for name, provider in settings.provider_by_name.items():
        patience_s = limit_s + provider.timeout.total_seconds()
        found.append(
            Trial(
                "provider",
                name,
                patience_s,
                lambda p=provider: try_provider(p, first.get(p.name), has_api=settings.api is not None),  # type: ignore[misc]
            )
        )
    for name, subscription in settings.subscription_by_name.items():
        found.append(Trial("subscription", name, limit_s, lambda s=subscription: _alone(s, policy)))  # type: ignore[misc]
    return found


async def try_all(found: Sequence[Trial], *, done: Callable[[], None]) -> list[Tried]:
    """Run trials side by side; returns their lines in the order given. `done` is called after each."""
    slots = asyncio.Semaphore(_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_within(trial, slots, done), name=trial.name) for trial in found]
    return [line for task in tasks for line in task.result()]


async def _within(trial: Trial, slots: asyncio.Semaphore, done: Callable[[], None]) -> list[Tried]:
    lines: list[Tried] = []
    async with slots:
        try:
            async with asyncio.timeout(trial.limit_s):
                async for tried in trial.run():
                    lines.append(tried)  # noqa: PERF401  # what came before the limit is kept
        except TimeoutError:
            text = f"no end within {trial.limit_s:g} s"
            lines.append(
                Tried(
                    trial.kind,
                    trial.name,
                    "failed",
                    text,
                    "find out whether it hangs, or the network on the way",
                )
            )
    done()
    return lines


async def _alone(subscription: SubscriptionSettings, policy: Policy) -> AsyncIterator[Tried]:
    yield await try_subscriber(subscription, policy)


_STEP_S = 6.0
"""To connect, and again for TLS: so it is known which of the two hangs before the time for everything is
over."""

_OBJECTION_S = 0.3
"""With TLS 1.3 a server rejects a missing client certificate only after our side of the handshake has
ended."""


class Reached(NamedTuple):
    """How far it went: `error` and `fix` as in an attempt. `ends_at` is when its certificate ends."""

    error: str | None = None
    fix: str = ""
    is_refused_by_us: bool = False
    ends_at: datetime | None = None


async def reach(url: URL, policy: Policy, *, resolver: AbstractResolver | None = None) -> Reached:
    """Connect to where events would be POSTed, and hang up. `resolver` replaces DNS. Sets no time limit."""
    host, port = url.raw_host or "", url.port or 443
    context = ssl.create_default_context() if url.scheme == "https" else None
    dialer = Dialer(resolver, policy.judge)
    try:
        addresses = await dialer.look_up(host, port)
    except EgressRefused as refusal:
        return Reached(f"refused: {refusal.reason}", is_refused_by_us=True)
    except NoConnection:
        return Reached("its name does not resolve")
    finally:
        await dialer.close()
    reached = Reached("its name does not resolve")
    for address in addresses:
        reached = await _connect((address, port), host, context, policy)
        if reached.error is None:
            break
    return reached


async def _connect(
    address: tuple[str, int], host: str, context: ssl.SSLContext | None, policy: Policy
) -> Reached:
    loop, family = asyncio.get_running_loop(), socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    if reason := policy.judge(address[0]):
        return Reached(f"refused: {reason}", is_refused_by_us=True)
    connection = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    is_connected = False
    with connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_STEP_S):
                await loop.sock_connect(connection, address)
            is_connected = True
            name = host.removesuffix(".") if context else None
            async with asyncio.timeout(_STEP_S):
                transport, peer = await loop.create_connection(
                    _Peer, sock=connection, ssl=context, server_hostname=name
                )
            if context:
                await peer.may_object()
        except TimeoutError:
            if is_connected:
                return Reached(f"TLS failed: no handshake within {_STEP_S:g} s", HUNG_UP.fix)
            return Reached(f"{CANNOT_CONNECT}: no answer within {_STEP_S:g} s")
        except OSError as error:  # ssl.SSLError is one
            if context and (flaw := tls_flaw(error, is_handshake=True)):
                return Reached(flaw.words, flaw.fix)
            return Reached(cannot_connect(error))
        transport.abort()
    certificate = transport.get_extra_info("peercert") or {}
    ends = certificate.get("notAfter")
    return Reached(ends_at=datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) if ends else None)


class _Peer(asyncio.Protocol):
    def __init__(self) -> None:
        self._ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(exc)

    async def may_object(self) -> None:
        """Wait a moment for an alert. Raises ssl.SSLError where one comes."""
        await asyncio.wait([self._ended], timeout=_OBJECTION_S)
        if self._ended.done() and isinstance(error := self._ended.result(), ssl.SSLError):
            raise error
