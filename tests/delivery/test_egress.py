"""The policy's tables, and the check of a URL at load. No socket is opened here."""

import subprocess
import sys
import traceback
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from watcher.delivery.egress import LONGEST_URL, Address, Policy, RefusedUrl, check_url

# First and last addresses, taken from the registries by hand: a second opinion about the tables.
REFUSED_IPV4 = (
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("168.63.129.16", "168.63.129.16"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.0.2.0", "192.0.2.255"),
    ("192.31.196.0", "192.31.196.255"),
    ("192.52.193.0", "192.52.193.255"),
    ("192.88.99.0", "192.88.99.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("192.175.48.0", "192.175.48.255"),
    ("198.18.0.0", "198.19.255.255"),
    ("198.51.100.0", "198.51.100.255"),
    ("203.0.113.0", "203.0.113.255"),
    ("224.0.0.0", "255.255.255.255"),
)
REFUSED_IPV6 = (
    ("::", "::fffe:ffff:ffff"),
    ("::1:0:0:0", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
)
_EDGES_IPV4 = [int(IPv4Address(edge)) for pair in REFUSED_IPV4 for edge in pair]
_EDGES_IPV6 = [int(IPv6Address(edge)) for pair in REFUSED_IPV6 for edge in pair]


def near(edges: list[int], last: int) -> st.SearchStrategy[int]:
    """Any number up to `last`, half of them at an edge of a range or just beside it."""
    beside = st.tuples(st.sampled_from(edges), st.integers(-1, 1)).map(sum).filter(lambda n: 0 <= n <= last)
    return beside | st.integers(0, last)


ipv4 = near(_EDGES_IPV4, 2**32 - 1).map(IPv4Address)
ipv6 = near(_EDGES_IPV6, 2**128 - 1).map(IPv6Address)


def is_refused(address: str, policy: Policy | None = None) -> bool:
    return (policy or Policy()).verdict(ip_address(address)) is not None


def allowing(*networks: str, allow_http: bool = False, nat64: bool = False) -> Policy:
    return Policy(tuple(ip_network(network) for network in networks), allow_http=allow_http, nat64=nat64)


@pytest.mark.parametrize(("first", "last"), REFUSED_IPV4 + REFUSED_IPV6)
def test_a_reserved_range_is_refused_from_its_first_address_to_its_last(first: str, last: str) -> None:
    assert is_refused(first)
    assert is_refused(last)


@given(ipv4)
def test_ipv4_is_refused_in_exactly_the_reserved_ranges(address: IPv4Address) -> None:
    is_reserved = any(IPv4Address(first) <= address <= IPv4Address(last) for first, last in REFUSED_IPV4)
    assert (Policy().verdict(address) is not None) == is_reserved


@given(ipv6.filter(lambda address: address.ipv4_mapped is None))
def test_ipv6_is_refused_outside_of_global_unicast_and_in_its_reserved_ranges(address: IPv6Address) -> None:
    is_reserved = any(IPv6Address(first) <= address <= IPv6Address(last) for first, last in REFUSED_IPV6)
    assert (Policy().verdict(address) is not None) == is_reserved


@given(ipv4 | ipv6.filter(lambda address: address.ipv4_mapped is None))
def test_every_range_that_python_calls_special_is_refused(address: Address) -> None:
    is_special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    assert not is_special or Policy().verdict(address)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "loopback address"),
        ("169.254.169.254", "link-local address"),
        ("10.0.0.1", "private address"),
        ("255.255.255.255", "reserved or broadcast address"),
        ("::", "unspecified address"),
        ("::1", "loopback address"),
        ("::7f00:1", "IPv4-compatible address"),
        ("64:ff9b::7f00:1", "NAT64 address, and no NAT64 is declared"),
        ("64:ff9b:1::1", "local NAT64 address"),
        ("100::1", "discard-only address"),
        ("2002:7f00:1::", "6to4 address"),
        ("5f00::1", "segment routing address"),
        ("fd00:ec2::254", "private address"),
        ("fe80::1", "link-local address"),
        ("fec0::1", "site-local address"),
        ("ff02::1", "multicast address"),
        ("4000::1", "not a global unicast address"),
    ],
)
def test_a_refusal_names_the_kind_of_address(address: str, reason: str) -> None:
    assert Policy().verdict(ip_address(address)) == reason


@pytest.mark.parametrize(
    "address",
    [
        "100.64.0.1",
        "192.88.99.1",
        "192.0.0.8",
        "192.0.0.192",
        "168.63.129.16",
        "224.0.0.1",
        "ff02::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::127.0.0.1",
        "5f00::1",
        "3fff::1",
        "fec0::1",
        "2620:4f:8000::1",
    ],
)
def test_reserved_ranges_that_python_calls_global_are_refused(address: str) -> None:
    assert is_refused(address)


@given(ipv4, st.booleans())
def test_a_mapped_address_is_judged_as_the_ipv4_address_inside(address: IPv4Address, nat64: bool) -> None:
    policy = allowing("10.0.0.0/8", nat64=nat64)
    assert policy.verdict(IPv6Address(f"::ffff:{address}")) == policy.verdict(address)


@given(ipv4)
def test_a_nat64_address_is_judged_as_the_ipv4_address_inside_where_nat64_is_declared(
    address: IPv4Address,
) -> None:
    embedded = IPv6Address(int(IPv6Address("64:ff9b::")) + int(address))
    declared = allowing("10.0.0.0/8", nat64=True)
    assert declared.verdict(embedded) == declared.verdict(address)
    assert Policy().verdict(embedded)


def test_a_local_nat64_prefix_stays_refused_where_nat64_is_declared() -> None:
    assert is_refused("64:ff9b:1::808:808", Policy(nat64=True))


def test_an_exception_covers_exactly_the_network_given() -> None:
    policy = allowing("10.20.30.40/31", "fd00:1::/64")
    allowed = ["10.20.30.40", "10.20.30.41", "::ffff:10.20.30.40", "fd00:1::7"]
    refused = ["10.20.30.39", "10.20.30.42", "::ffff:10.20.30.42", "fd00:1:0:1::", "127.0.0.1"]
    assert not any(is_refused(address, policy) for address in allowed)
    assert all(is_refused(address, policy) for address in refused)


def test_allowing_all_of_ipv6_allows_no_ipv4_address() -> None:
    assert is_refused("::ffff:127.0.0.1", allowing("::/0"))


def test_an_address_with_a_zone_is_refused_even_where_its_network_is_allowed() -> None:
    assert is_refused("2606:4700:4700::1111%eth0")
    assert is_refused("fe80::1%eth0", allowing("fe80::/10"))
    assert is_refused("::ffff:8.8.8.8%1")


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com.",
        "https://hooks.example.com:443/in",
        "https://hooks.example.com:1024/in",
        "https://hooks.example.com:65535/in",
        "https://hooks.example.com/in?token=a%20b&c=d",
        "https://hooks.example.com/%7Euser/ünterwegs",
        "https://our_hooks.example.com/in",
        "https://4711.example.com/in",
        "https://xn--bcher-kva.example/in",
        "https://8.8.8.8:8443/",
        "HTTPS://hooks.example.com/in",
    ],
)
def test_an_ordinary_url_is_accepted(url: str) -> None:
    assert check_url(url, Policy()).origin() == URL(url).origin()


REFUSED_SPELLINGS = {
    "no scheme": "//hooks.example.com/in",
    "no scheme, no slashes": "hooks.example.com/in",
    "leading space": " https://hooks.example.com/in",
    "trailing newline": "https://hooks.example.com/in\n",
    "tab, which yarl drops": "https://hooks.exa\tmple.com/in",
    "NUL": "https://hooks.example.com/\0",
    "no-break space": "https://hooks.example.com/a\N{NO-BREAK SPACE}b",
    "zero-width space": "https://hooks.example.com/a\N{ZERO WIDTH SPACE}b",
    "right-to-left override": "https://hooks.example.com/\N{RIGHT-TO-LEFT OVERRIDE}b",
    "lone surrogate": "https://hooks.example.com/\ud800",
    "empty fragment": "https://hooks.example.com/in#",
    "empty user": "https://@hooks.example.com/in",
    "user without password": "https://user@hooks.example.com/in",
    "user and no host, which yarl trips over": "https://[::1]@",
    "empty port": "https://hooks.example.com:/in",
    "port with a sign": "https://hooks.example.com:+443/in",
    "port with an underscore": "https://hooks.example.com:4_43/in",
    "full-width port": "https://hooks.example.com:４４３/in",
    "port with leading zeros": "https://hooks.example.com:00443/in",
    "port of another protocol": "https://hooks.example.com:1023/in",
    "port out of range": "https://hooks.example.com:65536/in",
    "port that is a word": "https://hooks.example.com:https/in",
    "zone id, encoded percent": "https://[fe80::1%25eth0]/",
    "brackets around a name": "https://[hooks.example.com]/",
    "text behind the brackets": "https://[2606:4700:4700::1111].example.com/",
    "ideographic full stops": "https://8。8。8。8/",
    "number as last label": "https://hooks.example.123/",
    "hex as last label": "https://hooks.example.0x7f/",
    "dash before a label": "https://-hooks.example.com/",
    "dash behind a label": "https://hooks-.example.com/",
    "two dots at the end": "https://hooks.example.com../",
    "dot at the beginning": "https://.example.com/",
    "dot alone": "https://./",
    "odd character in the host": "https://hooks!.example.com/",
    "name over 253": f"https://{'a.' * 124}example/",
    "too long": "https://hooks.example.com/".ljust(LONGEST_URL + 1, "a"),
}


@pytest.mark.parametrize("url", REFUSED_SPELLINGS.values(), ids=REFUSED_SPELLINGS)
def test_an_odd_spelling_is_refused(url: str) -> None:
    with pytest.raises(RefusedUrl):
        check_url(url, allowing("0.0.0.0/0", "::/0", allow_http=True))


def test_the_longest_url_and_the_longest_name_are_still_accepted() -> None:
    longest_name = f"{'a.' * 123}example"
    assert check_url(f"https://{longest_name}/".ljust(LONGEST_URL, "a"), Policy()).raw_host == longest_name


def test_http_and_loopback_pass_only_where_both_are_allowed() -> None:
    url = "http://127.0.0.1:9000/in"
    check_url(url, allowing("127.0.0.1/32", allow_http=True))
    for policy in (Policy(), allowing("127.0.0.1/32"), Policy(allow_http=True)):
        with pytest.raises(RefusedUrl):
            check_url(url, policy)


@pytest.mark.parametrize("url", ["https://localhost:9000/", "https://127.0.0.1:25/"])
def test_an_exception_for_an_address_excuses_neither_a_bare_word_nor_a_port(url: str) -> None:
    with pytest.raises(RefusedUrl):
        check_url(url, allowing("127.0.0.0/8"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://169.254.169.254/latest", r"\(link-local address\).*\[egress\] allow"),
        ("http://hooks.example.com/", "allow_http"),
        ("wss://hooks.example.com/", "https://"),
        ("https://hooks.example.com/#in", "fragment"),
        ("https://user@hooks.example.com/", "user or a password"),
        ("https://[fe80::1%eth0]/", "percent sign"),
        ("https://hooks.example.com:22/", "port"),
        ("https://localhost/", "single word, .* write its full name, or its address"),
        ("https://127.1/", "number"),
    ],
)
def test_the_reason_says_what_to_change(url: str, reason: str) -> None:
    with pytest.raises(RefusedUrl, match=reason):
        check_url(url, Policy())


@pytest.mark.parametrize(
    "url",
    [
        "https://c4n4ry:pw@hooks.example.com/",
        "https://user:c4n4ry@hooks.example.com/",
        "https://c4n4ry/",
        "https://c4n4ry..example/",
        "https://[c4n4ry]/",
        "https://[c4n4ry::1]/",
        "https://hooks.example.com:c4n4ry/",
        "https://hooks.example.com:99999/c4n4ry",
        "https://10.0.0.1/c4n4ry",
        "https://hooks.example.com/c4n4ry\\",
        "https://hooks.example.com/#c4n4ry",
        f"https://c4n4ry{'ü' * 64}.example/",
        "https://c4n4ry\N{SOFT HYPHEN}.example/",
        "https://hooks.example.com\N{FULLWIDTH SOLIDUS}c4n4ry/",
        "c4n4ry://hooks.example.com/",
    ],
)
def test_a_refusal_never_repeats_any_part_of_the_url(url: str) -> None:
    with pytest.raises(RefusedUrl) as caught:
        check_url(url, Policy())
    assert "c4n4ry" not in "".join(traceback.format_exception(caught.value))


HOSTILE_PIECES = [
    "hooks.example.com",
    "127.0.0.1",
    "[::1]",
    "①",
    "。",
    "xn--",
    "ß",
    "0x7f",
    "8.8.8.8",
    ":443",
]
hostile_urls = st.lists(
    st.sampled_from([*HOSTILE_PIECES, *"@:/?#%.[]\\ \t-_&=", "//", "..", "%2f"]) | st.text(max_size=2),
    max_size=8,
).map(lambda pieces: "https://" + "".join(pieces))


@given(hostile_urls | st.text())
def test_any_text_is_refused_or_a_url_that_reads_back_the_same(text: str) -> None:
    try:
        url = check_url(text, Policy())
    except RefusedUrl:
        return
    assert (url.scheme, url.user, url.password, url.fragment) == ("https", None, None, "")
    assert url.raw_host
    assert url.raw_host.isascii()
    assert str(check_url(str(url), Policy())) == str(url)


def test_the_check_at_load_does_not_import_aiohttp() -> None:
    program = "import sys, watcher.delivery.egress; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run((sys.executable, "-c", program), check=False).returncode == 0
