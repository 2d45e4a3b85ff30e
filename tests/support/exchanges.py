"""Answers of exchanges, from their documentation, and accounts there; parts that need ccxt say so."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from watcher.providers.exchange import REVIEWED, Exchange, ExchangeAccount, ExchangeSettings, Listing
from watcher.snapshot import Balance

DATA = Path(__file__).parents[1] / "data" / "exchanges"

needs_ccxt = pytest.mark.skipif(
    find_spec("ccxt") is None, reason="needs ccxt: pip install 'balance-watcher[exchange]'"
)


class Sample(NamedTuple):
    """The answers to one poll, and what they say."""

    exchange: str
    listing: Listing
    params: dict[str, Any]
    bodies: list[bytes]
    balance_by_asset: dict[str, Balance]
    symbol_by_asset: dict[str, str]

    def __str__(self) -> str:
        return f"{self.exchange}-{self.listing.name}{'-nonzero' if self.listing.params else ''}"


def samples() -> list[Sample]:
    """One for each listing that was reviewed."""
    found = []
    for path in sorted(DATA.glob("*/*.expected.json")):
        said = json.loads(path.read_text())
        params = {name: value for name, value in said["params"].items() if name != "type"}
        (listing,) = (
            one
            for one in REVIEWED[path.parent.name].listings
            if said["params"].get("type") in one.types and one.params == params
        )
        pages = sorted(path.parent.glob(f"{path.name.split('.')[0]}-*.json"))
        amounts = {
            asset: Balance(total, locked, None, None) for asset, (total, locked) in said["amounts"].items()
        }
        bodies = [page.read_bytes() for page in pages]
        symbols = said.get("symbols", {})
        found.append(Sample(path.parent.name, listing, said["params"], bodies, amounts, symbols))
    return found


def errors() -> list[tuple[str, int, Any, str]]:
    """Exchange, status, body (text: no JSON), and what it means to a poll."""
    return [
        (path.parent.name, said["status"], said["body"], said["error_class"])
        for path in sorted(DATA.glob("*/errors.json"))
        for said in json.loads(path.read_text())
    ]


SECRET = "Y2FuYXJ5LXNlY3JldA=="


@cache
def a_private_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def keys_of(exchange: str) -> dict[str, str]:
    """What requests to an exchange are signed with."""
    if exchange != "coinbase":
        return {"api_key": "account-canary-key", "secret": SECRET, "password": "canary-password"}
    form = Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    pem = a_private_key().private_bytes(*form).decode()
    return {"api_key": "organizations/canary/apiKeys/k", "secret": pem.replace("\n", "\\n")}


def exchange_settings(exchange: str, **more: Any) -> ExchangeSettings:
    given = {"name": "there", "kind": "exchange", "exchange": exchange, **keys_of(exchange), **more}
    return ExchangeSettings.model_validate(given)


def exchange_account(**params: Any) -> ExchangeAccount:
    return ExchangeAccount.model_validate({"name": "ours", "provider": "there", "params": params})


def an_exchange(exchange: str, **more: Any) -> Exchange:
    return Exchange(exchange_settings(exchange, **more))
