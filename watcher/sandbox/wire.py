"""Puts an answer on the socket as it is: odd statuses, odd bytes, broken framing.

Refuses to decide what to answer.
"""

import asyncio

from aiohttp import hdrs, web

from watcher.sandbox.answers import Answer, Call


async def call_of(request: web.Request) -> Call:
    """Read a request whole."""
    body = await request.read()
    return Call(request.method, request.path, request.host, request.query, request.headers, body)


async def send(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send an answer, with the transport fault that it asks for."""
    if answer.delay_s:
        await asyncio.sleep(answer.delay_s)
    if answer.transport_fault == "hang":
        await asyncio.Event().wait()
    if answer.transport_fault == "disconnect":
        _close(request)
        return web.Response()
    if answer.transport_fault == "slow_body":
        return await _send_slowly(request, answer)
    if answer.transport_fault == "content_length_short":
        return await _send_half(request, answer)
    return web.Response(status=answer.status, body=answer.body, headers=_headers(answer))


async def drop_default_type(_: web.Request, response: web.StreamResponse) -> None:
    """Take back the Content-Type that aiohttp adds where an answer asked for none."""
    if response.headers.get(hdrs.CONTENT_TYPE) == "application/octet-stream":
        del response.headers[hdrs.CONTENT_TYPE]


async def _send_slowly(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = await _begun(request, answer)
    for byte in answer.body:
        await response.write(bytes((byte,)))
        await asyncio.sleep(answer.byte_every_s)
    return response


async def _send_half(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = await _begun(request, answer)
    await response.write(answer.body[: len(answer.body) // 2])
    _close(request)
    return response


async def _begun(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send the head, with a Content-Length for the whole body."""
    response = web.StreamResponse(status=answer.status, headers=_headers(answer))
    response.content_length = len(answer.body)
    await response.prepare(request)
    return response


def _headers(answer: Answer) -> dict[str, str]:
    typed = {hdrs.CONTENT_TYPE: answer.content_type} if answer.content_type else {}
    return typed | dict(answer.headers)


def _close(request: web.Request) -> None:
    if request.transport:
        request.transport.close()
