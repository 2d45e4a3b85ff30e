"""What an Ethereum node answers, recorded in tests/data/evm_answers.json, and the scenes of the recording.

`python -m tests.support.evm_scenes` records it anew.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.nodes import EMPTY, ETHEREUM_CHAIN, Ethereum, ethereum
from tests.support.provider_staging import API_KEY
from tests.support.tokens import erc20
from watcher.providers.evm import Evm, EvmAccount, EvmSettings
from watcher.providers.strict_json import parse

RECORDED = Path(__file__).parents[1] / "data" / "evm_answers.json"
TOKEN, OLD_TOKEN, NAMELESS_TOKEN = (
    "0x5fbdb2315678afecb367f032d93f642f64180aa3",
    "0xe7f1725e7734ce288f8367e1bb143e90bb3f0512",
    "0x9fe46736679d2d9a65f0992f2272de9f3c7fa6e0",
)
"""Where the first three contracts of a new chain lie."""
WORDLESS_TOKEN, BROKEN_TOKEN = (
    "0xcf7ed3acca5a467e9e704c703e8d87f634fb0fc9",
    "0xdc64a140aa3e981100a9beca4e685f962f0cf6c9",
)
"""One that says no decimals, and one that says no balance."""
NO_CONTRACT = "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"
NO_MULTICALL = "0x1111111111111111111111111111111111111111"


class Scene(NamedTuple):
    """What is asked, and what the node answered, body by body."""

    settings: Mapping[str, Any]
    tokens: Sequence[str]
    bodies: Sequence[str]

    @property
    def answers(self) -> list[Any]:
        return [parse(body.encode()) for body in self.bodies]


def evm_settings(base_url: str = "http://127.0.0.1:9", *, timeout_s: float = 5, **more: Any) -> EvmSettings:
    defaults: dict[str, Any] = {"path": "/v2/{api_key}", "api_key": API_KEY, "chain_id": ETHEREUM_CHAIN}
    timeout = timedelta(seconds=timeout_s)
    return EvmSettings(name="base", kind="evm", base_url=base_url, timeout=timeout, **(defaults | more))


def evm_account(*tokens: str, **more: Any) -> EvmAccount:
    return EvmAccount(name="gas", provider="base", **({"address": EMPTY, "tokens": tokens} | more))


def recorded() -> dict[str, Scene]:
    """The scenes as they were recorded, by name."""
    return {name: Scene(**scene) for name, scene in json.loads(RECORDED.read_text()).items()}


def scenes() -> Iterator[tuple[str, Scene]]:
    """Go through the scenes with a node of its own."""
    with ethereum() as chain:
        all_tokens = chain.deploy(
            erc20(10**24),
            erc20(10**24, decimals=6, symbol=b"OLD"),
            erc20(10**24, decimals=0, symbol=None),
            erc20(10**24, decimals=None),
            erc20(10**24, balance=False),
        )
        tokens = all_tokens[:3]
        assert all_tokens == [TOKEN, OLD_TOKEN, NAMELESS_TOKEN, WORDLESS_TOKEN, BROKEN_TOKEN]
        chain.install_multicall3()
        yield "empty", asked(chain, tokens)
        chain.send(EMPTY, 123_456_789_012_345_678_901)
        for token, amount in zip(tokens, (7 * 10**18 + 1, 5_000_001, 2), strict=True):
            chain.transfer(token, EMPTY, amount)
        chain.mine()
        yield "pending", asked(chain, tokens)
        yield "pending, one call at a time", asked(chain, tokens, calls_per_request=1)
        yield "pending, by confirmations", asked(chain, tokens, confirmations=2)
        yield "pending, without Multicall3", asked(chain, tokens, multicall=NO_MULTICALL)
        yield "latest", asked(chain, tokens, settled="latest")
        chain.mine(6)
        yield "cleared", asked(chain, tokens)
        chain.send(EMPTY, 5 * 10**18)
        chain.mine()
        yield "another deposit", asked(chain, [])
        chain.reorganise(2)
        yield "reorganised", asked(chain, [])
        chain.node.call("anvil_impersonateAccount", EMPTY)
        chain.send(NO_CONTRACT, 10**18, by=EMPTY)
        chain.mine()
        yield "withdrawal", asked(chain, [])
        yield "withdrawal, without Multicall3", asked(chain, [], multicall=NO_MULTICALL)
        for number, token in enumerate((WORDLESS_TOKEN, BROKEN_TOKEN, NO_CONTRACT)):
            yield f"no token {number}", asked(chain, [token])
            yield f"no token {number}, without Multicall3", asked(chain, [token], multicall=NO_MULTICALL)


def asked(chain: Ethereum, tokens: Sequence[str], **settings: Any) -> Scene:
    """Make one poll of the empty address."""
    provider = Evm(evm_settings(**settings))
    account = evm_account(*tokens)
    bodies: list[str] = []
    while requests := provider.requests(account, Scene({}, (), bodies).answers):
        bodies += [_posted(chain.node.port, request.json) for request in requests]
    return Scene(settings, tokens, bodies)


def _posted(port: int, said: Any) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/", json.dumps(said), {"Content-Type": "application/json"})
    body = connection.getresponse().read().decode()
    connection.close()
    return body


if __name__ == "__main__":
    said = {name: scene._asdict() for name, scene in scenes()}
    RECORDED.write_text(json.dumps(said, indent=1) + "\n")
