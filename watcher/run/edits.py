"""Adds, changes and deletes accounts and subscriptions while workers run. Each edit writes one record.

Each record was checked with the models and words of `watcher check`. Refuses to touch what the file defines.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from secrets import token_urlsafe
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from yarl import URL

from watcher.config.bodies import BodyRefused, Table, account_of, flaw, subscription_of
from watcher.config.sections import Providers, Source
from watcher.config.subscriptions import MOST_OF_AN_ACCOUNT
from watcher.config.tables import is_glob
from watcher.delivery.egress import Policy
from watcher.delivery.signing import PRIVATE, new_ed25519, new_secret, public_key
from watcher.encryption import Keyring, Undecryptable
from watcher.journal.interest import Interest
from watcher.observe.log import log
from watcher.pause import slowly
from watcher.settings import Settings, SubscriptionSettings
from watcher.store.directory import MOST, BadRecord, Directory, Kind, Record, Write, Written
from watcher.store.pipe import in_parts

IN_PLAIN = ("accounts", "events", "assets", "thresholds", "format")
"""What Redis stores unencrypted of a subscription: a worker that commits events needs it to queue them."""

OVERLAP_MS = 24 * 3600 * 1000
"""How long an old secret or token stays valid once there is a new one."""

TOKEN = "wst_"  # noqa: S105  # how a token begins: scanners of repositories look for such
"""The beginning of a subscription's token."""

_MOST_SECRETS = 10
_MOST_TOKENS = 5
_TRIES = 10
"""An edit is tried so often while other clients edit the same record."""

_AT_ONCE = 50
"""Bodies checked in one turn of the event loop: a few milliseconds."""

_LARGE = 2_000
"""Characters from which on a body is checked in a thread: 64 KiB with a mistake in every word take a
second."""

T = TypeVar("T")

Match = Callable[[int | None], bool]
"""Says whether an edit may replace a version (as `Edited` has it; None: there is no record)."""

Content = dict[str, Any]
"""The part of a record that is encrypted."""


def anything(_: int | None) -> bool:
    """Match any version, and none."""
    return True


class EditRefused(Exception):
    """An edit that is refused, with a reason for the caller.

    `read_only`: the file defines it. `missing`: nothing has this name. `precondition`: the version is not the
    one that was asked for. `conflict`: other clients keep editing it. `full`: there are too many. `locked`:
    it was encrypted with a key that this worker does not have.
    """

    def __init__(
        self,
        why: Literal["read_only", "missing", "precondition", "conflict", "full", "locked"],
        text: str,
    ) -> None:
        super().__init__(text)
        self.why = why


class Edited(NamedTuple):
    """The result of an edit. `version` is the one to ask for at the next edit. `secrets` and `token` were
    made by the edit, and are shown only once."""

    name: str
    version: int
    change: Literal["created", "changed", "unchanged", "deleted", "secret", "token", "verified"]
    secrets: tuple[str, ...] = ()
    token: str | None = None


class InForce(Protocol):
    """The configuration in force: the file, and what the directory adds."""

    @property
    def settings(self) -> Settings: ...
    @property
    def interest(self) -> Interest: ...
    @property
    def providers(self) -> Providers: ...

    def defines(self, kind: Kind, name: str) -> bool:
        """Say whether the file has something of that name."""

    def holder(self, source: Source) -> str | None:
        """Return the account that polls a source."""

    async def follow_now(self) -> None:
        """Apply what was just written now, instead of within a second."""

    def leave(self, name: str) -> None:
        """Remove what is stored for a subscription that was deleted, once no worker queues events for it."""

    async def forget(self, name: str) -> None:
        """Remove at once what is stored for a subscription that was just deleted, before there is a new one
        of this name."""


def place_of(url: str) -> str:
    """Return the scheme, host and port of a URL: another one of these is another receiver."""
    read = URL(url, encoded=True)
    return f"{read.scheme}://{read.host}:{read.port}".lower()


class Editor:
    """Edits one directory. `by` names the token or the command that makes the edit. Methods raise EditRefused
    and StoreError."""

    def __init__(
        self, directory: Directory, keyring: Keyring, in_force: InForce, *, now_ms: Callable[[], int]
    ) -> None:
        self._directory = directory
        self._keyring = keyring
        self._in_force = in_force
        self._now_ms = now_ms

    async def put_account(self, table: Table, *, by: str, match: Match = anything) -> Edited:
        """Add or change an account. Raises BodyRefused as well."""
        (edited,) = await self.put_accounts([table], by=by, match=match)
        if isinstance(edited, Exception):
            raise edited
        return edited

    async def put_accounts(
        self, tables: Sequence[Table], *, by: str, match: Match = anything
    ) -> list[Edited | BodyRefused | EditRefused]:
        """Add or change accounts, each by itself: one that is refused stops no other."""
        found: dict[int, Edited | BodyRefused | EditRefused] = {}
        place_by_name: dict[str, int] = {}
        for place, table in enumerate(tables):
            if (first := place_by_name.setdefault(str(table.get("name")), place)) != place:
                found[place] = BodyRefused([flaw("/name", f"has the name of item {first + 1}, too")])
        taken: dict[Source, str] = {}
        for _ in range(_TRIES):
            places = [place for place in range(len(tables)) if place not in found]
            writes: dict[int, Write] = {}
            for some in in_parts(places, _AT_ONCE):
                reading = (self._read("account", str(tables[place].get("name"))) for place in some)
                records = await asyncio.gather(*reading, return_exceptions=True)
                for place, record in zip(some, records, strict=True):
                    try:
                        if isinstance(record, BaseException):
                            raise record
                        step = await self._account(tables[place], record, match, by, taken)
                        if isinstance(step, Edited):
                            found[place] = step
                        else:
                            writes[place] = step
                    except (BodyRefused, EditRefused) as refused:
                        found[place] = refused
            if not writes:
                break
            written = await self._directory.put_all([*writes.values()])
            for place, one in zip(writes, written, strict=True):
                if one.outcome != "conflict":
                    found[place] = _edited(writes[place], one)
        edits = [found.get(place, _conflict()) for place in range(len(tables))]
        await self._log_changes("account", [one for one in edits if isinstance(one, Edited)], by)
        return edits

    async def _account(
        self,
        table: Table,
        record: Record | None,
        match: Match,
        by: str,
        taken: dict[Source, str],
    ) -> Write | Edited:
        """Check one account. `taken` are the sources of the others in the same batch."""

        def holder(source: Source) -> str | None:
            return taken.get(source) or self._in_force.holder(source)

        self._check("account", str(table.get("name")), record, match)
        account, source = await _checked(table, account_of, self._in_force.providers, holder)
        listeners = len(self._in_force.interest.listeners(account.name))
        if listeners > MOST_OF_AN_ACCOUNT:
            text = f"{listeners:,} subscriptions are for it, {MOST_OF_AN_ACCOUNT:,} at most can be"
            raise BodyRefused([flaw("/name", text)])
        if source:
            taken[source] = account.name
        plain = {"provider": account.provider}
        settings = {key: value for key, value in table.items() if key not in ("name", "provider")}
        if record and record.plain == plain and self._open(record)["settings"] == settings:
            return Edited(account.name, record.edited, "unchanged")
        return self._encrypt("account", account.name, plain, {"settings": settings}, record, by)

    async def put_subscription(
        self, table: Table, *, by: str, match: Match = anything, kept: Content | None = None
    ) -> Edited:
        """Add or change a subscription. Raises BodyRefused as well.

        Without `secrets`, it keeps those that it has, or gets a new one. The first edit makes a token. If its
        URL leads to another receiver than before, it is unverified. `kept` is what an export has of a
        subscription without a record: its secrets with their ends, its tokens, and the verified host.
        """
        name = str(table.get("name"))

        async def decide(record: Record | None) -> tuple[Write | None, Edited]:
            self._check("subscription", name, record, match)
            before = self._open(record) if record else {**_NOTHING, **(kept or {})}
            signed = [one["secret"] for one in before["secrets"] if one["until_ms"] is None]
            is_given = "secrets" in table or not _is_signed(table)
            made = () if is_given or signed else (new_secret(),)
            in_force = self._in_force.settings
            subscription = await _checked(
                table if is_given else {**table, "secrets": [*signed, *made]},
                subscription_of,
                Policy.of(in_force.egress),
                in_force.subscription_by_name,
            )
            await self._refuse_fan_out(subscription)
            secrets = before["secrets"]
            if (signing := [one.get_secret_value() for one in subscription.secrets]) != signed:
                secrets = [{"secret": one, "until_ms": None} for one in signing]
            plain = {key: table[key] for key in IN_PLAIN if key in table}
            rest = table.keys() - {*IN_PLAIN, "name", "secrets"}
            content = {**before, "settings": {key: table[key] for key in rest}, "secrets": secrets}
            if record and record.plain == plain and content == before:
                return None, Edited(name, record.edited, "unchanged")
            token = None
            if not record and kept is None:
                await self._in_force.forget(name)
                token, hashed = _new_token()
                content["tokens"] = [{"hash": hashed, "until_ms": None}]
            known = place_of(before["settings"]["url"]) if record else before["verified"]
            if place_of(table["url"]) != known:
                content |= {"verified": None, "unverified_since_ms": self._now_ms()}
            write = self._encrypt("subscription", name, plain, content, record, by)
            return write, Edited(name, 0, "changed" if record else "created", made, token)

        return await self._edit("subscription", name, decide, by)

    async def _refuse_fan_out(self, subscription: SubscriptionSettings) -> None:
        """Refuse one more subscription for an account whose events one step could not queue for all of
        them."""
        settings, interest = self._in_force.settings, self._in_force.interest
        if len(settings.subscription_by_name) < MOST_OF_AN_ACCOUNT:
            return
        wanted, name = Interest({subscription.name: subscription}), subscription.name
        has_globs = any(map(is_glob, subscription.accounts))
        about = [*settings.account_by_name] if has_globs else subscription.accounts
        async for account in slowly(about, 2 * _AT_ONCE):
            if wanted.listeners(account):
                count = 1 + sum(other != name for other in interest.listeners(account))
                if count > MOST_OF_AN_ACCOUNT:
                    text = f"{count:,} are for account {account}, {MOST_OF_AN_ACCOUNT:,} at most can be"
                    raise BodyRefused([flaw("/accounts", f"{text}; name their accounts")])

    async def renew_secret(self, name: str, *, by: str) -> Edited:
        """Make a new secret of the same kind. The old ones sign as well for 24 hours."""

        async def decide(record: Record | None) -> tuple[Write, Edited]:
            record, content = self._opened(name, record)
            if not _is_signed(record.plain):
                raise EditRefused("read_only", f"the format of {name} signs nothing")
            is_private = content["secrets"][0]["secret"].startswith(PRIVATE)
            secret = new_ed25519() if is_private else new_secret()
            content["secrets"] = self._renewed("secret", secret, content["secrets"], _MOST_SECRETS)
            shown = public_key(secret) if is_private else secret
            return self._encrypt_again(record, content, by), Edited(name, 0, "secret", (shown,))

        return await self._edit("subscription", name, decide, by)

    async def renew_token(self, name: str, *, by: str) -> Edited:
        """Make a new token. The old ones stay valid for 24 hours. A subscription of the file has none."""
        if self._in_force.defines("subscription", name):
            why = "is defined in the configuration file and has no token: read its events with the operator's"
            raise EditRefused("read_only", f"subscription {name} {why}")

        async def decide(record: Record | None) -> tuple[Write, Edited]:
            record, content = self._opened(name, record)
            token, hashed = _new_token()
            content["tokens"] = self._renewed("hash", hashed, content["tokens"], _MOST_TOKENS)
            return self._encrypt_again(record, content, by), Edited(name, 0, "token", token=token)

        return await self._edit("subscription", name, decide, by)

    def _renewed(self, key: str, new: str, old: Sequence[Content], most: int) -> list[Content]:
        now_ms = self._now_ms()
        until_ms = now_ms + OVERLAP_MS
        ending = [{**one, "until_ms": min(one["until_ms"] or until_ms, until_ms)} for one in old]
        still = [one for one in ending if one["until_ms"] > now_ms]
        return [{key: new, "until_ms": None}, *still][:most]

    async def note_verified(self, name: str, url: str, *, by: str) -> bool:
        """Note that a URL answered a ping. Returns whether that made the subscription verified."""

        async def decide(record: Record | None) -> tuple[Write | None, Edited]:
            record, content = self._opened(name, record)
            place = place_of(url)
            if content["verified"] or place_of(content["settings"]["url"]) != place:
                return None, Edited(name, 0, "unchanged")
            content |= {"verified": place, "unverified_since_ms": None}
            return self._encrypt_again(record, content, by), Edited(name, 0, "verified")

        return (await self._edit("subscription", name, decide, by)).change == "verified"

    async def delete(self, kind: Kind, name: str, *, by: str, match: Match = anything) -> None:
        """Delete an account, as if it were taken out of the file; or a subscription, with what waits for
        it."""
        has_looked_again = False
        for _ in range(_TRIES):
            try:
                record = await self._directory.get(kind, name)
            except BadRecord:
                self._check(kind, name, None, anything)
                expected = None
            else:
                self._check(kind, name, record, match)
                expected = record.version if record else 0
            deleted = await self._directory.delete(kind, name, expected=expected)
            if deleted.outcome == "done":
                if kind == "subscription":
                    self._in_force.leave(name)
                await self._log_changes(kind, [Edited(name, deleted.version, "deleted")], by)
                return
            if deleted.outcome == "missing":
                if has_looked_again:
                    raise _missing(kind, name)
                has_looked_again = True
                await self._in_force.follow_now()  # if Redis lost it, this writes it again
        raise _conflict()

    async def _edit(
        self,
        kind: Kind,
        name: str,
        decide: Callable[[Record | None], Awaitable[tuple[Write | None, Edited]]],
        by: str,
    ) -> Edited:
        """Edit one record as `decide` says; `decide` is asked again if another client was faster."""
        for _ in range(_TRIES):
            write, edited = await decide(await self._read(kind, name))
            if write is None:
                return edited
            written = await self._directory.put(write)
            if written.outcome == "full":
                raise _full(kind)
            if written.outcome == "done":
                edited = edited._replace(version=written.version)
                await self._log_changes(kind, [edited], by)
                return edited
        raise _conflict()

    async def _read(self, kind: Kind, name: str) -> Record | None:
        try:
            return await self._directory.get(kind, name)
        except BadRecord as error:
            raise EditRefused("locked", f"{error}: delete it first") from None

    def _check(self, kind: Kind, name: str, record: Record | None, match: Match) -> None:
        if self._in_force.defines(kind, name):
            why = "is defined in the configuration file: change it there"
            raise EditRefused("read_only", f"{kind} {name} {why}")
        if not match(record.edited if record else None):
            there = "is there already" if match(None) else "has another version"
            found = there if record else "is not there"
            raise EditRefused("precondition", f"{kind} {name} {found}")

    def _opened(self, name: str, record: Record | None) -> tuple[Record, Content]:
        """Decrypt a subscription that must exist."""
        self._check("subscription", name, record, anything)
        if record is None:
            raise _missing("subscription", name)
        return record, self._open(record)

    def _open(self, record: Record) -> Content:
        try:
            return self._keyring.decrypt(record.kind, record.name, record.plain, record.encrypted)
        except Undecryptable as error:
            raise EditRefused("locked", f"{record.kind} {record.name} cannot be decrypted: {error}") from None

    def _encrypt(
        self,
        kind: Kind,
        name: str,
        plain: Mapping[str, Any],
        content: Content,
        record: Record | None,
        by: str,
    ) -> Write:
        """Make the record that replaces another one, or none."""
        audited = {**content, "audit": {"by": by, "at_ms": self._now_ms()}}
        encrypted = self._keyring.encrypt(kind, name, plain, audited)
        return Write(kind, name, plain, encrypted, expected=record.version if record else 0)

    def _encrypt_again(self, record: Record, content: Content, by: str) -> Write:
        """Make a record whose content has changed without an edit of its client."""
        write = self._encrypt(record.kind, record.name, record.plain, content, record, by)
        return write._replace(edited=record.edited)

    async def _log_changes(self, kind: Kind, edits: Sequence[Edited], by: str) -> None:
        changed = [one for one in edits if one.change != "unchanged"]
        async for one in slowly(changed, _AT_ONCE):
            log.info("directory.changed", kind=kind, name=one.name, change=one.change, by=by)
        if changed:
            await self._in_force.follow_now()


_NOTHING: Content = {
    "settings": {},
    "secrets": [],
    "tokens": [],
    "verified": None,
    "unverified_since_ms": None,
}


async def _checked(table: Table, check: Callable[..., T], *arguments: object) -> T:
    """Check a body. Deliveries go on meanwhile, however many mistakes it has."""
    if len(json.dumps(table, default=str)) < _LARGE:
        return check(table, *arguments)
    return await asyncio.to_thread(check, table, *arguments)


def _is_signed(table: Mapping[str, Any]) -> bool:
    return bool(table.get("format", "standard") == "standard")


def _new_token() -> tuple[str, str]:
    """Make a subscription's token, and what is stored of it."""
    token = TOKEN + token_urlsafe(32)
    return token, sha256(token.encode()).hexdigest()


def _edited(write: Write, written: Written) -> Edited | EditRefused:
    if written.outcome == "full":
        return _full(write.kind)
    return Edited(write.name, written.version, "changed" if write.expected else "created")


def _missing(kind: Kind, name: str) -> EditRefused:
    return EditRefused("missing", f"there is no {kind} '{name}'")


def _full(kind: Kind) -> EditRefused:
    return EditRefused("full", f"there are {MOST[kind]:,} {kind}s already, the most there can be")


def _conflict() -> EditRefused:
    return EditRefused("conflict", "other clients keep editing it: try again")
