"""The texts and the line at the start say the same about the guarantees of each kind of server."""

from typing import get_args

import pytest

from tests.docs.blocks import texts_in
from watcher.store.guarantee import Persistence, judge

TEXT = " ".join(texts_in("deploy/GUARANTEES").split())
SAID = {
    "always": "neither a crash nor a power loss takes anything back",
    "everysec": "a power loss, or a crash of the server while its disk is slow, may take back the last",
    "no": "a power loss takes back what the system had not yet written",
    "snapshots": "Snapshots alone take back everything since the last one",
    "none": "a restart loses all state: every account starts with a new baseline",
}
IN_SHORT = {
    "always": "a crash or a power loss of Redis loses nothing",
    "everysec": "a power loss, or a crash of Redis while its disk is slow, takes back at most its last 2 s",
    "no": "a power loss takes back what its system had not yet written",
    "snapshots": "takes everything back to its last snapshot",
    "none": "a restart of Redis loses all state",
}
UNKNOWN = {"aof", "hidden"}
"""Where the server does not say what it keeps, nor do we."""


def sentence(persistence: str, replicas: int = 0) -> str:
    is_aof = persistence in ("always", "everysec", "no")
    info = {"redis_version": "7.2.4", "aof_enabled": int(is_aof), "connected_slaves": replicas}
    save = "3600 1" if persistence == "snapshots" else ""
    return judge(info, {"appendfsync": persistence if is_aof else "everysec", "save": save}, at="db").sentence


def test_every_kind_of_server_is_described() -> None:
    assert SAID.keys() | UNKNOWN == IN_SHORT.keys() | UNKNOWN == {*get_args(Persistence)}


@pytest.mark.parametrize("persistence", SAID)
def test_the_text_and_the_line_at_the_start_promise_the_same(persistence: str) -> None:
    assert SAID[persistence] in TEXT
    assert IN_SHORT[persistence] in sentence(persistence)


def test_the_text_and_the_line_at_the_start_say_what_a_failover_takes() -> None:
    assert "a failover may take back the last seconds with any of them" in TEXT
    assert "a failover may take back its last seconds" in sentence("always", replicas=1)
