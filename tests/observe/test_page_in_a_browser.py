"""What a person sees of the page in a real browser: at every width, with 1,000 accounts, by keyboard."""

import asyncio
import json
import os
from typing import Any

import pytest

from tests.observe.browser import AXE, PROGRAM, Browser, a_browser
from tests.observe.pictures import BACKING_OFF, a_days_page, held, many_accounts
from tests.support.stores import pause
from watcher.observe.page import look
from watcher.store.keys import Keys
from watcher.store.queues import Breakers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed"),
]

WIDTHS = (390, 600, 768, 1024, 1280, 1920)

HUGE = "115792089237316195423570985008687907853269984665640564039457.584007913129639935"

OVERFLOWING = """
[...document.querySelectorAll('body *')].filter((one) => {
  const box = one.getBoundingClientRect();
  return box.width > 1 && box.right > document.documentElement.clientWidth + 1;
}).map((one) => one.className || one.tagName)
"""

SHOWN = """
[...document.querySelector('.balance').querySelectorAll('.amount')]
  .map((one) => one.checkVisibility() && one.getBoundingClientRect().width > 10)
"""

OVERLAPPING = """
[...document.querySelectorAll('.balance')].flatMap((row) => {
  const texts = [...row.querySelectorAll('.amount > span:last-child, .balance button')]
    .map((one) => one.getBoundingClientRect()).filter((box) => box.width);
  return texts.flatMap((a, i) => texts.slice(i + 1).filter((b) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4));
}).length
"""

BROKEN = """
(() => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, range = document.createRange(), within = node.parentElement;
    if (!within.checkVisibility() || ['SCRIPT', 'STYLE'].includes(within.tagName)) continue;
    for (const { index, 0: word } of node.data.matchAll(/[\\w.,]+/g)) {
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1 && word.length < 30) found.push(word);
    }
  }
  return found;
})()
"""


async def opened(browser: Browser, port: int, **how: Any) -> None:
    await browser.open(f"http://127.0.0.1:{port}/", **how)
    await browser.until("document.querySelectorAll('.balance').length > 2")


async def test_at_every_width_all_columns_are_visible_and_no_word_is_broken() -> None:
    def story(now_ms: int) -> Any:
        yield "treasury", now_ms - 60_000, held(BACKING_OFF["treasury"], locked="1.000000000000000001")
        yield (
            "everything-at-once",
            now_ms - 50_000,
            held(
                {
                    "ETH": HUGE,
                    "PEPE": "981246113500.221",
                    "USDC": "999999999.999999",
                    "LRC": "99999999.123456789",
                },
                locked="98765432.123456789123456789",
                pending_deposit="123456789.987654321",
                pending_withdrawal="1234567.000000000000000001",
            ),
        )

    async with (
        a_days_page(story, names=("treasury", "everything-at-once"), last=None) as (port, _),
        a_browser() as browser,
    ):
        for width in WIDTHS:
            await opened(browser, port, width=width, height=900)
            assert await browser.value(OVERFLOWING) == [], width
            assert await browser.value("document.documentElement.scrollWidth") <= width
            assert await browser.value(SHOWN) == [True] * 5, width
            assert await browser.value(OVERLAPPING) == 0, width
            assert await browser.value(BROKEN) == [], width
        assert browser.complaints == []


SIZES = """
performance.getEntriesByType("resource").filter((one) => one.name.endsWith("page.json"))
  .map((one) => [one.decodedBodySize, one.encodedBodySize])[0]
"""

SCROLL = """
new Promise((done) => {
  const starts = [], worked = [], {port1, port2} = new MessageChannel();
  port2.onmessage = ({data}) => worked.push(performance.now() - data);
  scrollTo(0, 0);
  requestAnimationFrame(function step(start) {
    starts.push(start);
    port1.postMessage(performance.now());  // comes once this frame is laid out and painted
    scrollBy(0, 150);
    if (starts.length <= 120) requestAnimationFrame(step);
    else done([starts.slice(1).map((time, i) => time - starts[i]), worked]);
  });
})
"""
FRAME_MS = 17.5
WORK_MS = 8


BESIDE = """
scrollY > 5000 && [...document.querySelectorAll('#beside section')].every((one) => {
  const {top, bottom} = one.getBoundingClientRect();
  return top >= 0 && bottom <= innerHeight;
})
"""


async def test_a_thousand_accounts_scroll_at_sixty_frames_and_are_searched_filtered_and_grouped() -> None:
    names = tuple(f"wallet-{number:04d}" for number in range(1000))
    async with a_days_page(many_accounts(1000), names=names, last=None) as (port, _), a_browser() as browser:
        await opened(browser, port, width=1280, height=900)
        await browser.until("document.querySelectorAll('.group').length === 1000")
        rows = await browser.value("document.querySelectorAll('.balance').length")
        whole, sent = await browser.value(SIZES)
        assert whole > 500_000
        assert sent < whole / 10  # compressed
        await browser.call("Performance.enable", timeDomain="threadTicks")
        tries = []
        for _ in range(5):  # the machine may be busy with something else
            before = await computed_ms(browser)
            gaps, worked = await browser.value(SCROLL)
            computed = (await computed_ms(browser) - before) / len(gaps)
            in_time = sum(gap < FRAME_MS for gap in gaps) / len(gaps)
            tries.append((in_time, sorted(worked)[len(worked) * 95 // 100], computed))
            if in_time >= 0.95 and tries[-1][1] < WORK_MS:
                break
        in_times, works, computeds = zip(*tries, strict=True)
        assert min(computeds) < WORK_MS / 2, tries
        if os.getloadavg()[0] <= (os.cpu_count() or 1):  # else others take the time of frames
            assert min(works) < WORK_MS, tries  # what the page does in 95 of 100 frames
            assert max(in_times) >= 0.95, tries
        assert await browser.value(BESIDE), "what is beside the accounts stays in sight"
        await typed(browser, "wallet-0040 eth")
        await browser.until("document.querySelectorAll('.balance').length === 1")
        assert await browser.value("document.querySelector('.group h3').textContent") == "wallet-0040"
        await typed(browser, "nobody")
        await browser.until("document.getElementById('found').textContent === 'none found'")
        await typed(browser, "")
        await chosen(browser, "grouping", "asset")
        await browser.until("document.querySelector('.group h3').textContent === 'ETH'")
        await browser.until(f"document.querySelectorAll('.balance').length === {rows}")
        await chosen(browser, "filter", "moved")
        await browser.until("document.querySelectorAll('.balance').length === 0")
        await chosen(browser, "filter", "nonzero")
        await chosen(browser, "grouping", "provider")
        await browser.until(f"document.querySelectorAll('.balance').length === {rows}")
        assert await browser.value("document.querySelector('.group h3').textContent") == "loopring"
        assert browser.complaints == []


JUMP = """
(() => {
  document.querySelector("nav a[href='#h-subscriptions']").click();
  const top = (name) => document.querySelector(name).getBoundingClientRect().top;
  return [top("nav"), top("#h-subscriptions") > 0 && top("#h-subscriptions") < innerHeight - 100];
})()
"""
ACCOUNTS = "document.querySelectorAll('.group').length"
FOCUSED = "document.activeElement.closest('.group')?.querySelector('h3').textContent"


async def test_on_a_phone_events_and_subscriptions_are_a_touch_away_however_many_accounts() -> None:
    names = tuple(f"wallet-{number:04d}" for number in range(100))
    async with a_days_page(many_accounts(100), names=names, last=None) as (port, _), a_browser() as browser:
        await opened(browser, port, width=390, height=844)
        first = await browser.value(ACCOUNTS)
        assert 10 < first < 20
        assert await browser.value(JUMP) == [0, True], "the links stay in sight"
        assert (
            await browser.value("document.querySelector('#all-accounts').innerText")
            == "show all 100 accounts"
        )
        await browser.value("document.querySelector('#all-accounts').click()")
        await browser.until(f"{ACCOUNTS} === 100")
        assert await browser.value(FOCUSED) == f"wallet-{first:04d}"
        assert await browser.value(JUMP) == [0, True]
        await browser.value("document.querySelector('#all-accounts').click()")
        await browser.until(f"{ACCOUNTS} === {first}")
        await typed(browser, "wallet-0099")
        await browser.until(f"{ACCOUNTS} === 1")
        assert not await browser.value("document.querySelector('#all-accounts').checkVisibility()")
        await typed(browser, "")
        await browser.until(f"{ACCOUNTS} === {first}")
        await browser.call(
            "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False
        )
        await browser.until(f"{ACCOUNTS} === 100")
        assert browser.complaints == []


async def computed_ms(browser: Browser) -> float:
    """How long the page's own thread has computed so far, not counting what others took of it."""
    metrics = (await browser.call("Performance.getMetrics"))["metrics"]
    return 1000 * float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


async def typed(browser: Browser, text: str) -> None:
    await browser.value(
        f"(() => {{ const one = document.getElementById('search'); one.value = {json.dumps(text)};"
        " one.dispatchEvent(new Event('input')); })()"
    )


async def chosen(browser: Browser, name: str, value: str) -> None:
    await browser.value(
        f"(() => {{ const one = document.getElementById('{name}'); one.value = '{value}';"
        " one.dispatchEvent(new Event('change')); })()"
    )


async def pressed(browser: Browser, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        text = (
            {"text": key if len(key) == 1 else "\r"}
            if kind == "keyDown" and (len(key) == 1 or key == "Enter")
            else {}
        )
        await browser.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)


async def test_an_exact_amount_and_its_history_are_one_key_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "FRESH_S", 0.0)
    async with a_days_page() as (port, worker), a_browser() as browser:
        await opened(browser, port, width=1280, height=900)
        assert (
            await browser.value("document.querySelector('.balance .total span:last-child').textContent")
            == "1,522.5033…"
        )
        exact = "1522.503318745120448337"
        assert await browser.value("document.querySelector('.balance .total span:last-child').title") == exact
        await pressed(browser, "/", 191)
        assert await browser.value("document.activeElement.id") == "search"
        for _ in range(3):
            await pressed(browser, "Tab", 9)
        assert await browser.value("document.activeElement.textContent") == "ETH"
        await pressed(browser, "Enter", 13)
        await browser.until("document.getElementById('detail').open")
        said = await browser.value("document.getElementById('detail').innerText")
        assert exact in said
        assert "total.increased 40: ✓ 200, " in said.replace("\xa0", " ")
        assert "+40, between 1482.503318745120448337 and 1522.503318745120448337" in said
        assert {"1,522.5033…", "1,482.5033…", "now"} <= set(
            await browser.value("[...document.querySelectorAll('.chart text')].map((one) => one.textContent)")
        )
        await pressed(browser, "Escape", 27)
        await browser.until("!document.getElementById('detail').open")
        assert await browser.value("document.activeElement.textContent") == "ETH"
        chips = await browser.value(
            "[...document.querySelector('.chips').children].map((one) => one.innerText)"
        )
        waiting, done = (chip.replace("\xa0", " ") for chip in chips)
        assert waiting.startswith("↻ 503, ")
        assert waiting.endswith(" ms, 2 attempts → accounting")
        assert done.startswith("✓ 200, ")
        assert done.endswith(" ms → ops")
        worker.opened = None
        await browser.value("look()")
        await browser.until(
            "document.getElementById('state').textContent === 'unknown: Redis cannot be used'"
        )
        assert "What is below was read" in await browser.value("document.getElementById('alarm').textContent")
        assert browser.complaints == []


@pytest.mark.skipif(AXE is None, reason="axe-core of npm is not there: see tests/README.md")
@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
async def test_the_accessibility_check_finds_nothing(scheme: str, width: int) -> None:
    assert AXE
    axe = await asyncio.to_thread(AXE.read_text, "utf-8")
    async with a_days_page() as (port, worker), a_browser() as browser:
        assert worker.opened
        keys = Keys(worker.settings.redis.namespace)
        await pause(Breakers(worker.opened.schedule.pipe, keys), "ops", "status 410")
        await opened(browser, port, width=width, height=900, scheme=scheme)
        assert await browser.value(NOTES) == [
            "paused since",
            "what to do",
            ["watcher subscriptions resume ops"],
        ]
        await browser.call("Runtime.evaluate", expression=axe)
        for opens in ("#nothing", ".event summary", ".balance button"):
            await browser.value(f"document.querySelector({opens!r})?.click()")
            violations, passes = await browser.value(INSPECT)
            assert violations == [], opens
            assert passes > 10


NOTES = """
(() => {
  const notes = document.querySelector('#subscriptions li .notes'), [why, todo] = notes.children;
  return [why.textContent.slice(0, 12), todo.textContent.slice(0, 10),
    [...notes.querySelectorAll('code')].map((one) => one.textContent)];
})()
"""
INSPECT = """
axe.run(document).then(({ violations, passes }) => [violations.map((one) =>
  [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200), one.nodes[0].failureSummary]), passes.length])
"""
