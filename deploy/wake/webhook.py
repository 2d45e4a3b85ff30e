"""Poll an account when its provider POSTs to http://HOST:PORT/TOKEN/ACCOUNT: TOKEN=… webhook.py HOST PORT"""

import asyncio
import hmac
import os
import sys

from aiohttp import web

TOKEN, POLLING, WAITING = os.environ["TOKEN"].encode(), asyncio.Lock(), set[str]()


async def poll(request: web.Request) -> web.Response:
    token, account = request.match_info["token"], request.match_info["account"]
    if not hmac.compare_digest(token.encode(), TOKEN):
        raise web.HTTPNotFound
    if account in WAITING:  # the call that waits has not begun yet, so it is for this one, too
        return web.Response(status=202)
    WAITING.add(account)
    async with POLLING:
        WAITING.discard(account)
        process = await asyncio.create_subprocess_exec("watcher", "poll", "--", account)
        code = await process.wait()
    return web.Response(status={0: 202, 2: 404}.get(code, 503))  # a provider calls again after a 503


app = web.Application()
app.router.add_post("/{token}/{account}", poll)
web.run_app(app, host=sys.argv[1], port=int(sys.argv[2]), access_log=None)
