"""What real nodes say is read to the last digit."""

import pytest

from tests.support.nodes import litecoin, monero
from watcher.amounts import from_integer, from_number, to_atoms, to_text
from watcher.providers.strict_json import parse

pytestmark = pytest.mark.slow


def test_a_number_of_a_bitcoin_node_is_read_to_the_last_digit() -> None:
    with litecoin() as chain:
        chain.open_wallet("shop")
        for amount in ("12.34567891", "0.00010001"):
            chain.send("shop", amount)
        said = parse(chain.node.answer("getbalances", path="/wallet/shop"))
    balances = {name: from_number(number.text) for name, number in said["result"]["mine"].items()}
    assert balances == {"trusted": "0", "untrusted_pending": "12.34577892", "immature": "0"}


def test_a_number_of_a_monero_wallet_is_read_to_the_last_digit() -> None:
    with monero() as chain:
        said = parse(chain.wallet.answer("get_balance", account_index=0))["result"]
        rewards = chain.wallet.call("incoming_transfers", transfer_type="all")["transfers"]
    total, unlocked = (from_integer(str(said[name]), 12) for name in ("balance", "unlocked_balance"))
    assert total == to_text(sum(to_atoms(from_integer(str(reward["amount"]), 12)) for reward in rewards))
    assert 0 < to_atoms(unlocked) < to_atoms(total)
