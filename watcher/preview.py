"""Previews polls: from two answers of a provider to the events that they would make.

Pure. Refuses to read an answer in a way of its own: the provider's module does, as in a real poll.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import SecretStr, ValidationError

from watcher.journal.account import EMPTY_MS, EMPTY_REPEATS, AccountState, Advance, Rules, advance
from watcher.providers.contract import Catalogue, Provider, Rejected, Request, check_height
from watcher.providers.strict_json import NotJson, parse
from watcher.settings import AccountSettings
from watcher.snapshot import Snapshot, asset_id

Kind = Literal["loopring", "metakeep"]

_MORE_THAN_SETTLING = EMPTY_REPEATS + 1
"""Further polls that end every wait: those for what is suspect, one for what is pending confirmation then."""


class Round(NamedTuple):
    """What one more poll with the second answer does; `polls` counts those before it."""

    polls: int
    advance: Advance


def preview(before: Snapshot, after: Snapshot, rules: Rules) -> Iterator[Round]:
    """Take `before` as the baseline, and then `after` again and again until nothing is left to emit."""
    state = _state(advance(None, before, source="", rules=rules, observed_ms=0), before)
    for polls in range(1 + rules.settle_polls + _MORE_THAN_SETTLING):
        step = advance(state, after, source="", rules=rules, observed_ms=polls * EMPTY_MS // EMPTY_REPEATS)
        yield Round(polls, step)
        state = _state(step, after)
        if not step.pending_confirmation and not step.suspect:
            return


def parsed(body: bytes) -> Any:
    """Parse the body of an answer. Raises Rejected."""
    try:
        return parse(body)
    except NotJson as error:
        raise Rejected("malformed", f"the answer is {error}") from None


class MoreAsked(Exception):
    """A poll asks for more than was given: for these requests, next."""

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__()
        self.requests = requests


def polls(
    provider: Provider, account: AccountSettings, bodies: Iterable[bytes]
) -> Iterator[tuple[Snapshot, Sequence[Any]]]:
    """Read the bodies of answers, in the order in which they are asked for, as one poll after the other: each
    with its answers, parsed.

    Raises Rejected as a poll would, and MoreAsked where the last one is not whole.
    """
    rest, height = [*bodies], None
    while rest:
        answers: list[Any] = []
        asked = provider.requests(account)
        while asked:
            given, rest = rest[: len(asked)], rest[len(asked) :]
            if len(given) < len(asked):
                raise MoreAsked(asked[len(given) :])
            for body in given:
                answers.append(parsed(body))
                if refused := provider.refusal(200, answers[-1]):
                    raise refused
            asked = provider.requests(account, answers) if provider.most_rounds > 1 else ()
        snapshot = provider.read(account, answers, {})
        check_height(height, snapshot.height)
        height = snapshot.height
        yield snapshot, answers


def kind_of(answer: Any) -> Kind | None:
    """Guess from the shape of a parsed answer which provider it is from."""
    if isinstance(answer, list):
        return "loopring"
    names = answer.keys() if isinstance(answer, dict) else ()
    if "balances" in names or "status" in names:
        return "metakeep"
    return "loopring" if "tokenId" in names or "resultInfo" in names else None


class Reader:
    """Reads parsed answers as polls of one account: of the one, and with the assets, that they are about."""

    def __init__(self, kind: Kind, answers: Iterable[Any]) -> None:
        self._provider, self._account = (_loopring if kind == "loopring" else _metakeep)([*answers])

    def read(self, answer: Any, catalogue: Catalogue) -> Snapshot:
        """Read an answer that came with status 200. Raises Rejected."""
        self._check(answer)
        return self._provider.read(self._account, [answer], catalogue)

    def read_catalogue(self, answer: Any) -> Catalogue:
        """Read a list of assets, as far as it can be read. Raises Rejected."""
        self._check(answer)
        return self._provider.read_catalogue(answer).asset_by_id

    def _check(self, answer: Any) -> None:
        if refused := self._provider.refusal(200, answer):
            raise refused


def _loopring(answers: list[Any]) -> tuple[Provider, AccountSettings]:
    """The account of the first row, so that an answer about another one is refused."""
    from watcher.providers.loopring import MAX_ID, Loopring, LoopringAccount, LoopringSettings

    owners = (row.get("accountId") for answer in answers for row in _rows(answer))
    owner = next((owner for owner in owners if type(owner) is int and 0 <= owner <= MAX_ID), None)
    account = LoopringAccount(
        name="preview",
        provider="loopring",
        account_id=owner,
        address=None if owner is not None else f"0x{'0' * 40}",
    )
    settings = LoopringSettings(name="loopring", kind="loopring", api_key=SecretStr("none"))
    return Loopring(settings), account


def _metakeep(answers: list[Any]) -> tuple[Provider, AccountSettings]:
    """A user watched for every currency that is mentioned."""
    from watcher.providers.metakeep import MetaKeep, MetaKeepAccount, MetaKeepSettings

    def user(*currencies: str) -> MetaKeepAccount:
        return MetaKeepAccount(name="preview", provider="metakeep", of={"user": ""}, currencies=currencies)

    currencies: dict[str, str] = {}
    for answer in answers:
        for row in _rows(answer.get("balances") if isinstance(answer, dict) else None):
            currency: Any = row.get("currency")
            try:
                user(currency)
            except ValidationError:
                continue  # the provider's module says what is wrong with it
            currencies.setdefault(asset_id(currency), currency)
    settings = MetaKeepSettings(name="metakeep", kind="metakeep", api_key=SecretStr("none"))
    watched = user("none").model_copy(update={"currencies": tuple(currencies.values())})
    return MetaKeep(settings), watched


def _rows(answer: Any) -> list[dict[str, Any]]:
    rows = answer if isinstance(answer, list) else [answer]
    return [row for row in rows if isinstance(row, dict)]


def _state(step: Advance, snapshot: Snapshot) -> AccountState:
    return AccountState("", snapshot.watched, step.entry_by_asset, emptiness=step.emptiness)
