"""What a provider's module says: how to ask and how to read. Everything else is the same for all providers.

Refuses to do I/O: a provider only describes requests and reads answers; `http` sends and guards.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, cast

from watcher import recipes
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Asset, Row, Snapshot

ErrorClass = Literal["auth", "configuration", "rate", "transient", "malformed", "gone"]
"""Why a poll was rejected, as far as the worker reacts differently: auth and configuration need the operator,
rate and transient need time, malformed means that the provider broke its own contract (or that another server
answered), gone is a request without an answer."""

PERMANENT = ("auth", "configuration")
"""Classes that only a person can fix."""


def todo(error_class: str, provider: str) -> str | None:
    """Return what the operator has to do; None if the error may pass by itself, or if its reason says it."""
    section = f"[providers.{provider}]"
    return {
        "auth": f"fix the key in {section}",
        "configuration": f"fix the account, or base_url of {section}",
        "rate": f"lower requests_per_second in {section}, or wait: others use the same key",
        "malformed": f"check whether base_url in {section} leads to this provider, and not to a proxy",
    }.get(error_class)


_NOTHING: Mapping[str, str] = MappingProxyType({})


class Request(NamedTuple):
    """One HTTP request, relative to the provider's base_url. Its repr shows nothing of it, because a key may
    be anywhere in it."""

    method: Literal["GET", "POST"]
    path: str
    query: Mapping[str, str] = _NOTHING
    secret_headers: Mapping[str, str] = _NOTHING
    json: Any = None
    body: bytes | None = None
    """Sent as it is, because it is signed. The same holds for a path that contains its own query."""

    def __repr__(self) -> str:
        return "Request(...)"


class Rejected(Exception):
    """The poll is rejected: the last state and its time stay, and there is no event. The next poll follows
    after a backoff.

    `reason` is a short text of ours, never what the provider said: `words`, and how to fix it if that is not
    plain. It is the same for all polls with one cause; `detail` belongs to this poll only. `retry_after_s` is
    what the provider asks for, bounded by us.
    """

    def __init__(
        self,
        error_class: ErrorClass,
        words: str,
        *,
        fix: str = "",
        detail: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.reason = f"{words}; {fix}" if fix else words
        super().__init__(self.reason)
        self.error_class: ErrorClass = error_class
        self.words = words
        self.fix = fix
        self.detail = detail
        self.status = status
        self.retry_after_s = retry_after_s


LAG = 128
"""By how many blocks, slots or ledgers one node of a provider may be behind another. A lower height comes
from another chain, or from a node that was set back."""


def check_height(accepted: int | None, height: int | None) -> None:
    """Refuse a snapshot whose height is lower than that of the last accepted one. Raises Rejected."""
    if accepted is None or height is None or height >= accepted:
        return
    heights = f"read at height {height}, where the last one was read at {accepted}"
    if accepted - height <= LAG:
        raise Rejected("transient", heights)
    words = f"its height is more than {LAG} lower than before: another chain, or a node that was set back"
    fix = "`watcher accounts reset NAME` starts a new baseline"
    raise Rejected("configuration", words, fix=fix, detail=heights)


Catalogue = Mapping[str, Asset]
"""The known assets of a provider, by asset id."""


class AssetList(NamedTuple):
    """A provider's list of assets, as far as it can be read. `odd` says by asset id what is wrong with its
    row; if `is_whole` is false, some rows do not say which asset they are about."""

    asset_by_id: Catalogue
    odd: Mapping[str, str] = MappingProxyType({})
    is_whole: bool = True


class Provider(Protocol):
    """One configured provider. Made once per section of the file; holds no state but its settings.

    Answers come as `strict_json.parse` makes them: text, int, bool, None, list, dict, and Number or Ambiguous
    for anything else. Whatever they hold, a provider raises nothing but Rejected.
    """

    Settings: ClassVar[type[ProviderSettings]]
    Account: ClassVar[type[AccountSettings]]
    unknown_fields: Set[str]
    """The fields of a balance that are always null."""
    most_rounds: int
    """How often a poll asks at most: once if all requests are known at the start, more often if an answer
    says what to ask next (a page, a height). A poll that asks more often is rejected."""

    def __init__(self, settings: Any) -> None: ...

    def source(self, account: Any) -> str:
        """Return what is asked about: two accounts with the same source are the same, filters aside.

        It may name a person, so it is never logged. Raises Rejected for an account that this provider cannot
        ask about; such an account is not configured.
        """
        ...

    def may_hold(self, account: Any, asset: str) -> bool | None:
        """Say whether an asset, by its id or symbol, is among what is asked for; None: only a poll can
        say."""
        ...

    def requests(self, account: Any, answers: Sequence[Any] = ()) -> Sequence[Request]:
        """Return what to ask next about one account, given the parsed answers so far; an empty list ends the
        poll.

        All answers together are one poll. Raises Rejected, but not without answers. If `most_rounds` is 1, it
        is called without answers only. It may be called again with the same answers; then the requests differ
        in nothing but their time.
        """
        ...

    def read(self, account: Any, answers: Sequence[Any], catalogue: Catalogue) -> Snapshot:
        """Read the parsed JSON bodies of the answers to all requests, none of which is a refusal. Raises
        Rejected.

        An asset that is missing from the catalogue is read in the provider's own unit.
        """
        ...

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        """Say why an answer with this status and JSON body (None: not JSON) is a refusal.

        None: it is nothing that this provider documents; then `http` goes by the status alone.
        """
        ...

    def catalogue_request(self) -> Request | None:
        """Return how to ask for the list of assets; None if there is no list."""
        ...

    def read_catalogue(self, answer: Any) -> AssetList:
        """Read that list, which is never empty. One odd row rejects only the polls that need its asset.
        Raises Rejected."""
        ...


Line = tuple[Row | None, str | None]
"""The content of one row: None if its asset is not watched; and whose balance it is, if it says so. All rows
of a poll must agree on that."""


class ByRow(ABC):
    """A provider whose answers are lists of rows. Whether an answer is a refusal does not depend on the
    rows."""

    is_by_row: bool = True
    """Whether each row is about another asset, and says everything about it: an instance may decide."""

    @abstractmethod
    def rows(self, answers: Sequence[Any]) -> Sequence[Any]:
        """Find the rows in the parsed answers, in their order. Raises Rejected."""

    @abstractmethod
    def read_row(self, account: Any, said: Any, catalogue: Catalogue, *, watched: Set[str] | None) -> Line:
        """Read one row, which may be any JSON. Raises Rejected."""

    @abstractmethod
    def watched(self, account: Any) -> tuple[str, ...] | None:
        """Return the assets that are asked for. None: all of them, so that one without a row is zero."""

    def read(self, account: Any, answers: Sequence[Any], catalogue: Catalogue) -> Snapshot:
        """Read the answers of one poll. Raises Rejected."""
        return self.read_owned(account, answers, catalogue)[0]

    def read_owned(
        self, account: Any, answers: Sequence[Any], catalogue: Catalogue
    ) -> tuple[Snapshot, str | None]:
        """Read the answers of one poll, and whose balances they are, as the rows say. Raises Rejected."""
        watched = self.watched(account)
        wanted = None if watched is None else frozenset(watched)
        row_by_asset: dict[str, Row] = {}
        owner = None
        for position, said in enumerate(self.rows(answers)):
            try:
                row, its_owner = self.read_row(account, said, catalogue, watched=wanted)
            except Rejected as odd:
                raise Rejected(odd.error_class, f"row {position}: {odd.words}") from None
            if owner and its_owner and owner != its_owner:
                raise Rejected("malformed", f"row {position}: a balance of another account")
            owner = owner or its_owner
            if row and row_by_asset.setdefault(row.asset.id, row).balance != row.balance:
                raise Rejected("malformed", f"row {position}: another balance of an asset listed above")
        return Snapshot(row_by_asset, watched, absent_is_zero=watched is None), owner


USABLE = 0.95
"""The usable part of the requests that a provider allows: they are sent 5 % further apart than the limit asks
(`http`)."""


def requests_needed(provider: Provider, accounts: Iterable[AccountSettings]) -> float:
    """Return how many requests a second these accounts need: one poll an interval, if nothing is pending."""
    return sum(len(provider.requests(account)) / account.interval.total_seconds() for account in accounts)


PLACE_BY_KIND = {
    "evm": "watcher.providers.evm:Evm",
    "exchange": "watcher.providers.exchange:Exchange",
    "http": "watcher.providers.declared:Http",
    "loopring": "watcher.providers.loopring:Loopring",
    "metakeep": "watcher.providers.metakeep:MetaKeep",
}


def kinds() -> tuple[str, ...]:
    """Return every kind that a section may have: those that are code, then the recipes."""
    return (*PLACE_BY_KIND, *recipes.names())


@cache
def provider_class(kind: str) -> type[Provider]:
    """Import the class that reads a kind, one of `kinds()`. Raises KeyError for any other."""
    if kind in recipes.names():
        kind = recipes.recipe(kind).kind
    module, _, name = PLACE_BY_KIND[kind].partition(":")
    return cast(type[Provider], getattr(import_module(module), name))
