import asyncio

import pytest

from watcher.providers.contract import AssetList, ErrorClass, Rejected
from watcher.providers.kept import RENEW_S, RETRY_S, KeptCatalogue
from watcher.snapshot import Asset

DOWN = Rejected("transient", "an error at the provider (503)")


class Listed:
    """A list of assets that a test can change, a clock that it can move, and a count of fetches."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids
        self.now_s = 1000.0
        self.fetches = 0
        self.down = False
        self.odd: dict[str, str] = {}
        self.is_whole = True
        self.kept = KeptCatalogue(self._fetch, clock=lambda: self.now_s)

    async def _fetch(self) -> AssetList:
        self.fetches += 1
        await asyncio.sleep(0)
        if self.down:
            raise DOWN
        return AssetList({one: Asset(one, decimals=18) for one in self.ids}, self.odd, self.is_whole)


async def test_the_list_is_fetched_when_an_asset_is_not_in_it_and_then_no_more() -> None:
    listed = Listed("0", "1")
    await listed.kept.look_up({"0"})
    await listed.kept.look_up({"0", "1"})
    assert listed.kept.asset_by_id.keys() == {"0", "1"}
    assert (listed.fetches, listed.kept.unlisted) == (1, set())


async def test_many_polls_at_once_fetch_it_once() -> None:
    listed = Listed("0", "1")
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(listed.kept.look_up({"0"}))
    assert listed.fetches == 1


async def test_an_asset_missing_from_a_fresh_list_is_unlisted_and_looked_up_again_later() -> None:
    listed = Listed("0")
    await listed.kept.look_up({"0", "28"})
    assert listed.kept.unlisted == {"28"}
    listed.now_s += RENEW_S - 1
    await listed.kept.look_up({"0", "28"})
    assert listed.fetches == 1
    listed.now_s += 1
    listed.ids = ("0", "28")
    await listed.kept.look_up({"0", "28"})
    assert (listed.fetches, listed.kept.unlisted) == (2, set())
    assert "28" in listed.kept.asset_by_id


async def test_a_new_unknown_asset_is_looked_up_at_once_but_not_too_often() -> None:
    listed = Listed("0")
    await listed.kept.look_up({"0"})
    listed.ids = ("0", "300")
    await listed.kept.look_up({"300"})
    assert listed.fetches == 1
    assert "300" not in listed.kept.unlisted
    listed.now_s += RETRY_S
    await listed.kept.look_up({"300"})
    assert (listed.fetches, "300" in listed.kept.asset_by_id) == (2, True)


async def test_a_failure_keeps_the_last_list_and_leaves_the_asset_unknown() -> None:
    listed = Listed("0")
    await listed.kept.look_up({"0"})
    listed.now_s += RETRY_S
    listed.down = True
    await listed.kept.look_up({"300"})
    assert listed.kept.refused is DOWN
    assert (list(listed.kept.asset_by_id), list(listed.kept.unlisted)) == (["0"], [])
    listed.now_s += RETRY_S
    listed.down = False
    await listed.kept.look_up({"300"})
    assert (list(listed.kept.asset_by_id), list(listed.kept.unlisted)) == (["0"], ["300"])
    assert listed.kept.refused is None


async def test_a_delisted_asset_stays_known() -> None:
    listed = Listed("0", "26")
    await listed.kept.look_up({"26"})
    listed.now_s += RETRY_S
    listed.ids = ("0", "1")
    await listed.kept.look_up({"1"})
    assert listed.kept.asset_by_id.keys() == {"0", "1", "26"}


async def test_a_cancelled_fetch_blocks_no_other_poll() -> None:
    listed = Listed("0")
    fetching = asyncio.create_task(listed.kept.look_up({"0"}))
    await asyncio.sleep(0)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await listed.kept.look_up({"0"})
    assert "0" in listed.kept.asset_by_id


async def test_a_provider_that_makes_up_assets_fills_no_memory() -> None:
    listed = Listed("0")
    for round_number in range(30):
        await listed.kept.look_up({f"{round_number}-{one}" for one in range(1000)})
        listed.now_s += RETRY_S
    assert len(listed.kept.unlisted) <= 11_000


async def test_an_asset_whose_row_is_odd_is_not_unlisted_until_its_row_is_fixed() -> None:
    listed = Listed("0")
    listed.odd = {"5": "no decimals"}
    await listed.kept.look_up({"0", "5", "28"})
    assert listed.kept.unlisted == {"28"}
    assert listed.kept.refusal({"5"}).reason == "the list of assets is odd for asset 5: no decimals"
    listed.now_s += RETRY_S
    listed.ids, listed.odd = ("0", "5"), {}
    await listed.kept.look_up({"5"})
    assert "5" in listed.kept.asset_by_id


async def test_a_known_asset_stays_known_though_its_row_becomes_odd() -> None:
    listed = Listed("0", "5")
    await listed.kept.look_up({"5"})
    listed.now_s += RETRY_S
    listed.ids, listed.odd = ("0",), {"5": "no decimals"}
    await listed.kept.look_up({"28"})
    assert listed.kept.asset_by_id.keys() == {"0", "5"}


async def test_beside_a_row_without_an_id_no_asset_counts_as_unlisted() -> None:
    listed = Listed("0")
    listed.is_whole = False
    await listed.kept.look_up({"0", "28"})
    assert ({*listed.kept.asset_by_id}, {*listed.kept.unlisted}) == ({"0"}, set())
    assert "rows that cannot be read" in listed.kept.refusal({"28"}).reason


async def test_a_list_that_only_a_person_can_make_readable_says_so() -> None:
    told_by_trouble: dict[ErrorClass, ErrorClass] = {"auth": "auth", "gone": "transient"}
    for error_class, shown in told_by_trouble.items():
        listed = Listed("0")
        listed.kept.refused = Rejected(error_class, "forbidden (403)", status=403)
        refused = listed.kept.refusal({"5"})
        assert (refused.error_class, refused.status) == (shown, 403)
