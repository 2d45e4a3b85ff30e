"""Whatever a symbol, a name or a reason contains, a chat shows it as plain text.

What more there would be is judged by the rules that each service has published, not by our escapes.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.delivery.test_chat import a_chat, sent
from tests.delivery.test_sentences import a_change
from watcher.delivery.formats.services import SERVICES

TLDS = "com|net|org|io|me|fi|example|xyz"
LINKS = re.compile(
    rf"""(?ix) [a-z][a-z0-9+.-]*:// | \bwww\.\w | \bmailto:\w | \btel:\+?\d | [\w.+-]+@[\w-]+ \. \w
    | [\w-]+\.(?:{TLDS})\b | \b\d{{1,3}}(?:\.\d{{1,3}}){{3}}\b"""
)
"""What clients make links of in any text: addresses of the web, of mail, of telephones."""


def hidden(text: str) -> Iterator[str]:
    """What is not seen, or turns the order of what is: but for what parts a link."""
    for character in text.replace("\u200b", ""):
        if not character.isprintable() and character != "\n":
            yield f"hidden {character!a}"


def links(text: str) -> Iterator[str]:
    yield from (f"link {found[0]}" for found in LINKS.finditer(text))


def in_slack(body: bytes, headers: Mapping[str, str]) -> Iterator[str]:
    """Formatting text for app surfaces: `<…>` is a link or a mention, `&` begins one of three escapes."""
    message = json.loads(body)
    block = message["blocks"][0]["text"]
    assert (block["type"], block["emoji"], message["mrkdwn"]) == ("plain_text", False, False)
    assert (message["unfurl_links"], message["unfurl_media"]) == (False, False)
    for text in (message["text"], block["text"]):
        yield from re.findall(r"[<>]|&(?!amp;|lt;|gt;)", text)
        shown = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        yield from links(shown)
        yield from hidden(shown)


DISCORD = re.compile(
    r"""(?mx) (?P<m>\*{1,3}|_{1,3}|~~|\|\||`{1,3}) (?=\S) [^\n]+? (?P=m)
    | ^[ ]*(?:\#{1,3}|-\#|>{1,3}|[-*]|\d+\.)[ ]
    | \[ [^\]\n]* \]\ ?\( | <(?:@[!&]?|\#|/|a?:|t:|id:) | @everyone | @here | :\w+:"""
)
"""Markdown Text 101, and Message Formatting of the developers' documentation."""


def in_discord(body: bytes, headers: Mapping[str, str]) -> Iterator[str]:
    message = json.loads(body)
    assert message["allowed_mentions"] == {"parse": []}
    assert message["flags"] & 4
    # A backslash before punctuation shows the punctuation: it takes part in nothing more.
    live = re.sub(r"\\([!-/:-@\[-`{-~])", "\N{REPLACEMENT CHARACTER}", message["content"])
    yield from (f"markup {found[0]}" for found in DISCORD.finditer(live))
    yield from links(message["content"].replace("\\", ""))
    yield from hidden(live)


def in_teams(body: bytes, headers: Mapping[str, str]) -> Iterator[str]:
    """Text features: a TextBlock knows markdown, runs of a RichTextBlock do not; functions stand in {{…}}."""
    (attachment,) = json.loads(body)["attachments"]
    assert "msteams" not in attachment["content"], "mentions are listed there"
    for block in attachment["content"]["body"]:
        assert block["type"] == "RichTextBlock"
        for run in block["inlines"]:
            assert run.keys() == {"type", "text"}
            yield from re.findall(r"\{\{(?:DATE|TIME)\(", run["text"])
            yield from links(run["text"])
            yield from hidden(run["text"])


TELEGRAM = re.compile(r"(?<!\w)(?:@\w{3}|\#\w|\$[A-Z]|/\w)|\+\d{7}")
"""MessageEntity: mention, hashtag, cashtag, bot_command, phone_number."""


def in_telegram(body: bytes, headers: Mapping[str, str]) -> Iterator[str]:
    message = json.loads(body)
    assert message.keys() == {"chat_id", "text", "link_preview_options"}, "no parse mode, no entities"
    assert message["link_preview_options"] == {"is_disabled": True}
    yield from (f"entity {found[0]}" for found in TELEGRAM.finditer(message["text"]))
    yield from links(message["text"])
    yield from hidden(message["text"])


def in_ntfy(body: bytes, headers: Mapping[str, str]) -> Iterator[str]:
    """Markdown is switched on by a header or a content type, and by nothing in a text."""
    assert headers["markdown"] == "no"
    assert headers["content-type"].startswith("text/plain")
    assert not {"click", "actions", "attach", "icon", "title", "tags"} & headers.keys()
    yield from links(body.decode())
    yield from hidden(body.decode())


def in_pagerduty(body: bytes, headers: Mapping[str, str]) -> Iterator[str]:
    """PD-CEF: all fields are text, and what is a URL in one is a link."""
    message = json.loads(body)
    assert not {"links", "images", "client_url"} & message.keys()
    payload = message["payload"]
    for text in (payload["summary"], payload["source"]):
        yield from links(text)
        yield from hidden(text)
    assert payload["custom_details"] == {
        "event": "evt_1",
        "type": "deposit.cleared",
        "sequence": 1795175095846,
    }


JUDGES: Mapping[str, Callable[[bytes, Mapping[str, str]], Iterator[str]]] = {
    "slack": in_slack,
    "discord": in_discord,
    "teams": in_teams,
    "telegram": in_telegram,
    "ntfy": in_ntfy,
    "pagerduty": in_pagerduty,
}

PIECES = (
    *(
        "<!channel>",
        "<@U1>",
        "<#C1>",
        "<http://evil.example|x>",
        "&",
        "<",
        ">",
        "&lt;",
        "*x*",
        "_x_",
        "~~x~~",
    ),
    *(
        "`x`",
        "||x||",
        "[x](http://evil.example)",
        "@everyone",
        "@here",
        "@user",
        "#tag",
        "$CASH",
        "/start",
        ":x:",
    ),
    *(
        "<t:1:R>",
        "</x:1>",
        "<:x:1>",
        "# x",
        "> x",
        "- x",
        "1. x",
        "12. x",
        "-# x",
        "{{DATE(2026-01-01T00:00:00Z)}}",
    ),
    *("https://evil.example/x", "www.evil.example", "evil.com", "a@evil.com", "mailto:a", "tel:+12025550123"),
    *(
        "+12025550123",
        "10.0.0.1",
        "\\",
        "\\*",
        "\u202e",
        "\u2066",
        "\u200b",
        "\x00",
        "\x1b[31m",
        "\r\n",
        "\u2028",
    ),
    *("\n# x", "\n- x", "{account}", "{{", "}}", " ", "x", "USDC.e", "\U0001f600", "\ud800"),
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=6).map("".join)
TEMPLATES = (
    "{sentence}",
    "{reason}{asset}{account}",
    "{asset} {account} {reason}",
    "{reason}{asset}: {amount}",
    "{asset_id}{asset_id}",
)


@pytest.mark.parametrize("format_", SERVICES)
@given(symbol=TEXTS, name=TEXTS, id_=TEXTS, reason=TEXTS, template=st.sampled_from(TEMPLATES))
@example("<!channel> @everyone", "*x*", "https://evil.example", "1. x", "{asset} {account} {reason}")
@example("12. x", "- x", "@here", "> x", "{asset} {account} {reason}")
@example("com", "/x", "1", "https://evil.", "{reason}{asset}{account}")
@example("", "evil.com", "[x](http://evil.example)", "a", "{sentence}")
def test_hostile_text_is_shown_as_plain_text_in_every_service(
    format_: str, symbol: str, name: str, id_: str, reason: str, template: str
) -> None:
    asset = {"id": id_, "symbol": symbol or None, "name": name}
    change: dict[str, Any] = {"account": {"name": name, "provider": id_}, "reason": reason}
    try:
        delivery = a_change(asset=asset, **change)
    except TypeError:  # a lone surrogate: what orjson cannot write, no event can hold
        return
    target = a_chat(format_, template=template)
    headers, body = sent(target, delivery)
    assert [*JUDGES[format_](body, headers)] == []


@pytest.mark.parametrize("format_", SERVICES)
def test_the_check_finds_links_mentions_and_markup(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our escapes, it finds something of each kind."""
    service = type(SERVICES[format_])
    monkeypatch.setattr(service, "escape", lambda _, text: text)
    monkeypatch.setattr("watcher.delivery.formats.sentences.harmless", lambda text, width=0: str(text))
    hostile = "https://evil.example <!channel> **x** {{DATE(2026-01-01T00:00:00Z)}} @user"
    headers, body = sent(a_chat(format_), a_change(asset={"id": "1", "symbol": hostile}))
    found = [*JUDGES[format_](body, headers)]
    assert len(found) >= (2 if format_ in ("slack", "discord", "teams", "telegram") else 1)
