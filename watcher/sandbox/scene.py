"""The world and the script that the sandbox starts with when nobody brings their own.

Refuses to be more than an example: one account at each provider, and something that moves every few seconds.
"""

from importlib.resources import files

from watcher.sandbox.holdings import ListedAsset
from watcher.sandbox.script import Script
from watcher.sandbox.script_file import read_script
from watcher.sandbox.world import World

TREASURY = 10110
ALICE = "alice@example.com"

LOOPRING_ASSETS = (
    ListedAsset("0", "ETH", "Ethereum", 18),
    ListedAsset("1", "LRC", "Loopring", 18),
    ListedAsset("3", "USDT", "Tether USD", 6),
    ListedAsset("6", "USDC", "USD Coin", 6),
)
METAKEEP_ASSETS = (
    ListedAsset("0x1456b21890f920110190063921f6bc7f7b027fa6", "MK", "MetaKeep", 18, lockable=True),
    ListedAsset("0x0186b21890f920110190063921f6bc7f7b027fa6", "ZBVS", "VEuBtTAtPu", 6, lockable=True),
    ListedAsset("0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619", "WETH", "Wrapped Ether", 18),
    ListedAsset("0x0000000000000000000000000000000000001010", "POL", "Polygon", 18),
)
SCRIPT = "default_script.jsonl"


def empty_world() -> World:
    """Make a world that lists the usual assets and has no accounts."""
    world = World()
    for asset in LOOPRING_ASSETS:
        world.list_asset("loopring", asset)
    for asset in METAKEEP_ASSETS:
        world.list_asset("metakeep", asset)
    return world


def default_world() -> World:
    """Make a world with the account 10110 at Loopring and alice@example.com at MetaKeep."""
    world = empty_world()
    world.open_account(TREASURY, ETH="2.5", LRC="1000", USDC="5000")
    world.open_account(ALICE, MK="1.12", ZBVS="100041.234567", POL="25")
    world.lock(ALICE, "ZBVS", "10.12")
    return world


def default_script() -> Script:
    """Read the script of a minute of changes, which repeats for ever."""
    text = files("watcher.sandbox").joinpath(SCRIPT).read_text("utf-8")
    return read_script(text, default_world(), source=SCRIPT)
