"""Real nodes, each with an empty chain of its own: started on free ports, and killed at the end.

Everything is synchronous and returns once it has happened. A test that asks for a node that is not installed
is skipped with a reason.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from platform import machine
from typing import Any

import pytest

from tests.support.servers import a_free_port

USER, PASSWORD = "watcher", "swordfish"
"""Of litecoind's RPC."""

_START_S = 30
_CALL_S = 30


class Refused(Exception):
    """A node says why it does not do what it was asked."""


@dataclass(frozen=True)
class Node:
    """The JSON-RPC of a node that runs."""

    port: int
    header_by_name: Mapping[str, str] = field(default_factory=dict)
    path: str = "/"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, *params: Any, path: str | None = None, **named: Any) -> Any:
        """Ask for one thing; numbers with a fraction come as their text. Raises Refused."""
        answer = json.loads(self.answer(method, *params, path=path, **named), parse_float=str)
        if answer.get("error"):
            raise Refused(answer["error"])
        return answer["result"]

    def answer(self, method: str, *params: Any, path: str | None = None, **named: Any) -> bytes:
        """Ask for one thing; return the answer as it came, whatever its status."""
        said = {"jsonrpc": "2.0", "id": 1, "method": method, "params": named or params}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_CALL_S)
        with contextlib.closing(connection):
            connection.request("POST", path or self.path, json.dumps(said), self.header_by_name)
            return connection.getresponse().read()


def installed(program: str | None, name: str) -> str:
    """Return the path of a program, or skip the test that needs it."""
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program


@contextlib.contextmanager
def running(node: Node, asked: str, command: Sequence[str], directory: Path) -> Iterator[Node]:
    """Run a program that keeps its data in `directory` inside the block, once it answers what is `asked`."""
    log = directory / f"log-{node.port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, "HOME": str(directory)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        give_up_at = time.monotonic() + _START_S
        while not _answers(node, asked):
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise AssertionError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.01)
        yield node
    finally:
        process.kill()
        process.wait()


def _answers(node: Node, asked: str) -> bool:
    try:
        node.call(asked)
    except (OSError, HTTPException, ValueError, Refused):  # there is no chain yet, or not even a listener
        return False
    return True


class Litecoin:
    """A node of Bitcoin's kind, and its wallet `miner`, which may spend the first 50 LTC."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.open_wallet("miner")
        self.mine(101)  # what was mined is mature a hundred blocks later

    def open_wallet(self, name: str) -> None:
        self.node.call("createwallet", name)

    def wallet(self, name: str, method: str, *params: Any) -> Any:
        """Ask one wallet."""
        return self.node.call(method, *params, path=f"/wallet/{name}")

    def send(self, to: str, amount: str, *, by: str = "miner") -> None:
        """Send so much, as text, from one wallet to another one. It is in no block yet."""
        self.wallet(by, "sendtoaddress", self.wallet(to, "getnewaddress"), amount)

    def mine(self, blocks: int = 1) -> str:
        """Mine blocks for `miner`, and return the hash of the last one."""
        mined = self.node.call("generatetoaddress", blocks, self.wallet("miner", "getnewaddress"))
        return str(mined[-1])


@contextlib.contextmanager
def litecoin() -> Iterator[Litecoin]:
    """Run litecoind inside the block: half a second, 70 MB."""
    program = installed(shutil.which("litecoind"), "litecoind")
    authorization = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    node = Node(a_free_port(), {"Authorization": f"Basic {authorization}"})
    settings = {
        "datadir": ".",
        "rpcport": node.port,
        "rpcuser": USER,
        "rpcpassword": PASSWORD,
        "listen": 0,
        "keypool": 1,
        "fallbackfee": "0.0001",
        "printtoconsole": 0,
    }
    flags = ("-regtest", *(f"-{name}={value}" for name, value in settings.items()))
    with (
        tempfile.TemporaryDirectory(prefix="watcher-") as directory,
        running(node, "getblockcount", (program, *flags), Path(directory)),
    ):
        yield Litecoin(node)


class Monero:
    """A node and the wallet server beside it, with a wallet that holds what was mined."""

    def __init__(self, node: Node, wallet: Node) -> None:
        self.node = node
        self.wallet = wallet
        wallet.call("create_wallet", filename="shop", password="", language="English")
        self.address = str(wallet.call("get_address", account_index=0)["address"])

    def mine(self, blocks: int = 1) -> None:
        """Mine blocks for the wallet, which then knows of them."""
        self.node.call("generateblocks", amount_of_blocks=blocks, wallet_address=self.address)
        self.wallet.call("refresh")


MONERO_LOCKS = 60
"""What was mined may be spent so many blocks later."""


@contextlib.contextmanager
def monero(blocks: int) -> Iterator[Monero]:
    """Run monerod and monero-wallet-rpc inside the block, with so many blocks. A wallet takes seconds to
    make, and so do forty blocks."""
    program = installed(shutil.which("monerod"), "monerod")
    server = installed(shutil.which("monero-wallet-rpc"), "monero-wallet-rpc")
    node, wallet = (Node(a_free_port(), path="/json_rpc") for _ in range(2))
    quiet = ("--log-level=0", "--max-concurrency=1", "--non-interactive")
    of_node = (
        *("--regtest", "--offline", "--fixed-difficulty=1", "--data-dir=.", "--fast-block-sync=0"),
        *("--no-zmq", "--disable-dns-checkpoints", "--check-updates=disabled"),
        *(f"--rpc-bind-port={node.port}", f"--p2p-bind-port={a_free_port()}"),
    )
    of_wallet = (
        *("--disable-rpc-login", "--wallet-dir=.", "--trusted-daemon", "--shared-ringdb-dir=."),
        *(f"--rpc-bind-port={wallet.port}", f"--daemon-address=127.0.0.1:{node.port}"),
    )
    with tempfile.TemporaryDirectory(prefix="watcher-") as name:
        directory = Path(name)
        with (
            running(node, "get_block_count", (program, *quiet, *of_node), directory),
            running(wallet, "get_version", (server, *quiet, *of_wallet), directory),
        ):
            chain = Monero(node, wallet)
            chain.mine(blocks)
            yield chain


RICH, EMPTY = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266", "0x00000000000000000000000000000000000ba11e"
"""An address with 10,000 ETH, and an empty one."""
ETHEREUM_CHAIN = 31337
MULTICALL3 = "0xca11bde05977b3631167028862be2a173976ca11"
MULTICALL3_CODE = Path(__file__).parents[1] / "data" / "multicall3.hex"
"""What lies at that address on most chains (github.com/mds1/multicall3, MIT), and not on a new one."""
ANVIL = "@foundry-rs/anvil-linux-{}@1.7.1".format("arm64" if machine() == "aarch64" else "amd64")
TOOLS = Path(__file__).parents[2] / ".tools"
"""Where a checkout has it, by `npm install --prefix .tools` and this package."""


class Ethereum:
    """A chain whose blocks are mined when they are asked for: the finalized one is 4 behind."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def mine(self, blocks: int = 1) -> None:
        self.node.call("anvil_mine", hex(blocks))

    def reorganise(self, depth: int) -> None:
        """Replace the last blocks by as many that are empty."""
        self.node.call("anvil_reorg", depth, [])

    def send(self, to: str | None, wei: int = 0, data: str = "", *, by: str = RICH) -> str:
        """Send a transaction, which is in no block yet. Returns its hash."""
        sent = {"from": by, "value": hex(wei), "data": f"0x{data}", "gas": hex(1_000_000), "gasPrice": "0x0"}
        return str(self.node.call("eth_sendTransaction", sent | ({"to": to} if to else {})))

    def transfer(self, token: str, to: str, amount: int, *, by: str = RICH) -> None:
        """Send so many of the smallest units of a token. They are in no block yet."""
        self.send(token, data=f"a9059cbb{to[2:]:0>64}{amount:064x}", by=by)

    def deploy(self, *codes: bytes) -> list[str]:
        """Put contracts on the chain, in one block that is then final. Returns their addresses."""
        sent = [self.send(None, data=code.hex()) for code in codes]
        self.mine(5)
        receipts = [self.node.call("eth_getTransactionReceipt", hash_) for hash_ in sent]
        return [str(receipt["contractAddress"]) for receipt in receipts]

    def install_multicall3(self) -> None:
        code = "".join(MULTICALL3_CODE.read_text().split())
        self.node.call("anvil_setCode", MULTICALL3, f"0x{code}")
        self.mine(5)


@contextlib.contextmanager
def ethereum(*flags: str) -> Iterator[Ethereum]:
    """Run Anvil inside the block: 0.2 s, 30 MB. Its transactions cost nothing."""
    of_checkout = shutil.which("anvil", path=str(TOOLS / "node_modules" / ".bin"))
    program = installed(shutil.which("anvil") or of_checkout, f"anvil, which npm has as {ANVIL},")
    node = Node(a_free_port(), {"Content-Type": "application/json"})
    own = (f"--port={node.port}", "--no-mining", "--slots-in-an-epoch=2", "--base-fee=0", "--silent")
    with (
        tempfile.TemporaryDirectory(prefix="watcher-") as directory,
        running(node, "eth_chainId", (program, *own, *flags), Path(directory)),
    ):
        yield Ethereum(node)
