"""Poll accounts with every new block: python newheads.py wss://node.example.com gas-tank hot-wallet"""

import asyncio
import sys

import aiohttp

SUBSCRIBE = {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]}


async def listen(url: str, woken: asyncio.Event) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.ws_connect(url, heartbeat=20) as node:
                    await node.send_json(SUBSCRIBE)
                    async for head in node:  # the first answers SUBSCRIBE: poll then too, for what was missed
                        if head.type is not aiohttp.WSMsgType.TEXT:
                            break
                        if "error" in head.json():
                            sys.exit(f"newheads: the node says {head.data}")
                        woken.set()
            except (aiohttp.ClientError, OSError) as error:
                print(f"newheads: {error}", file=sys.stderr)
            await asyncio.sleep(1)


async def poll(accounts: list[str], woken: asyncio.Event) -> None:
    while await woken.wait():
        woken.clear()  # a block that comes from here on is one more poll
        process = await asyncio.create_subprocess_exec("watcher", "poll", *accounts)
        await process.wait()


async def main(url: str, *accounts: str) -> None:
    woken = asyncio.Event()
    await asyncio.gather(listen(url, woken), poll([*accounts], woken))


asyncio.run(main(*sys.argv[1:]))
