"""Which requests are let in: by address, token and Host."""

from base64 import b64encode

import pytest

from watcher.api.access import Address, Door, ListenerRefused, parse_address

LOOPBACK = Address("127.0.0.1", 8787)
EVERYWHERE = Address("0.0.0.0", 8787)
TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("text", "address", "is_loopback"),
    [
        ("127.0.0.1:8787", ("127.0.0.1", 8787), True),
        ("127.8.9.1:1", ("127.8.9.1", 1), True),
        ("localhost:0", ("127.0.0.1", 0), True),
        ("[::1]:8787", ("::1", 8787), True),
        ("0.0.0.0:8787", ("0.0.0.0", 8787), False),
        ("[::]:8787", ("::", 8787), False),
        ("10.1.2.3:65535", ("10.1.2.3", 65535), False),
    ],
)
def test_an_address_is_read_as_it_is_written(text: str, address: tuple[str, int], is_loopback: bool) -> None:
    read = parse_address(text)
    assert read == address
    assert read.is_loopback is is_loopback
    assert parse_address(str(read)) == read


@pytest.mark.parametrize(
    "text",
    [
        *("", ":8787", "8787", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:8787"),
        *(
            "ops.example.com:80",
            "127.1:80",
            "127.0.0.1:80 ",
            "http://127.0.0.1:80",
            "[fe80::1%eth0]:1",
            "1.2.3.4.5:1",
        ),
        "127.0.0.1:８０",
    ],
)
def test_an_invalid_address_is_refused_and_names_are_not_looked_up(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address(text)


@pytest.mark.parametrize("address", [EVERYWHERE, Address("::", 1), Address("192.168.1.7", 1)])
def test_an_address_beyond_loopback_needs_a_token(address: Address) -> None:
    with pytest.raises(ListenerRefused, match="WATCHER_HTTP_TOKEN") as refused:
        Door(address, None)
    assert refused.value.exit_code == 78
    assert Door(address, TOKEN).refusal({"authorization": f"Bearer {TOKEN}"}) is None


@pytest.mark.parametrize(
    "token", ["", "short", "a token with spaces in it", "a-token-with-ümlauts", "a" * 20 + "\n"]
)
def test_a_token_that_is_weak_or_fits_no_header_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ListenerRefused, match="16 visible ASCII characters") as refused:
        Door(LOOPBACK, token)
    assert not token or token not in str(refused.value)


@pytest.mark.parametrize("address", [LOOPBACK, EVERYWHERE])
@pytest.mark.parametrize("user", ["", "anybody"])
def test_a_browser_shows_the_token_as_a_password(address: Address, user: str) -> None:
    shown = b64encode(f"{user}:{TOKEN}".encode()).decode()
    assert Door(address, TOKEN).refusal({"host": "127.0.0.1", "authorization": f"Basic {shown}"}) is None


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer  "])
def test_the_authorization_scheme_may_be_in_any_case(scheme: str) -> None:
    assert Door(EVERYWHERE, TOKEN).refusal({"authorization": f"{scheme} {TOKEN}"}) is None
    shown = b64encode(f"prometheus:{TOKEN}".encode()).decode()
    assert Door(EVERYWHERE, TOKEN).refusal({"authorization": f"basic {shown}"}) is None


@pytest.mark.parametrize(
    "shown",
    [
        "",
        TOKEN,
        "Bearer",
        f"Basic {TOKEN}",
        f"Basic {b64encode(TOKEN.encode()).decode()}",
        "Basic " + b64encode(f"watcher:{TOKEN}x".encode()).decode(),
        "Basic =",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        "Bearer ü",
        "Bearer \udcaf",  # a byte that is no UTF-8, as aiohttp gives it
    ],
)
@pytest.mark.parametrize("address", [LOOPBACK, EVERYWHERE])
def test_a_request_without_the_token_is_refused(address: Address, shown: str) -> None:
    assert Door(address, TOKEN).refusal({"host": "127.0.0.1", "authorization": shown}) == 401


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8787",
        "127.0.0.1",
        "localhost",
        "localhost.",
        "LocalHost:1",
        "[::1]:8787",
        "[::1]",
        "127.0.0.2",
    ],
)
def test_on_loopback_the_hosts_of_loopback_are_accepted(host: str) -> None:
    assert Door(LOOPBACK, None).refusal({"host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8787", "localhost.evil.example", "127.0.0.1.evil.example"),
        *(
            "127.0.0.1@evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::2]",
            "::1",
            "[127.0.0.1",
            "localhost:",
            "a b",
            "2130706433",
        ),
    ],
)
def test_on_loopback_any_other_host_is_refused_against_rebinding(host: str) -> None:
    door = Door(LOOPBACK, None)
    assert door.refusal({"host": host}) == 421
    assert "send `Host: 127.0.0.1`, or set WATCHER_HTTP_TOKEN" in door.advice(421, {"host": host})


@pytest.mark.parametrize("host", ["ops.example.com", "10.1.2.3:8787", "", "127.0.0.1"])
def test_with_a_token_any_public_name_of_a_proxy_is_accepted(host: str) -> None:
    door = Door(LOOPBACK, TOKEN)
    assert door.refusal({"host": host, "authorization": f"Bearer {TOKEN}"}) is None
    for shown in ({}, {"authorization": f"Bearer {TOKEN}x"}):
        assert door.refusal({"host": host, **shown}) == 401
        assert TOKEN not in door.advice(401, {"host": host, **shown})


def test_on_loopback_a_probe_without_a_host_is_accepted() -> None:
    assert Door(LOOPBACK, None).refusal({}) is None


def test_a_refused_host_is_shown_escaped_and_cut() -> None:
    found = Door(LOOPBACK, None).advice(421, {"host": "\x85evil\x9b" + "a" * 5000})
    assert found.isprintable()
    assert len(found) < 300
