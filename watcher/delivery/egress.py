"""Where events may be POSTed: the policy that judges addresses, and the check of a subscriber's URL at load.

Refuses to look names up and to open sockets: `watcher.http.dial` does that, and asks this policy each time.
The tables are our own, because `ipaddress.is_global` lets multicast, 6to4, NAT64 and more pass, and differs
between versions of Python. Source: the special-purpose registries,
https://www.iana.org/assignments/iana-ipv4-special-registry and
https://www.iana.org/assignments/iana-ipv6-special-registry; a comment marks what is from elsewhere.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

from watcher.fields import as_written
from watcher.settings import EgressSettings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_RESERVED = (
    ("0.0.0.0/8", "address of this host"),
    ("10.0.0.0/8", "private address"),
    ("100.64.0.0/10", "carrier-grade NAT address"),  # also where some clouds keep their metadata
    ("127.0.0.0/8", "loopback address"),
    ("168.63.129.16/32", "address of the cloud platform"),  # Azure's WireServer, inside a public block
    ("169.254.0.0/16", "link-local address"),  # also where most clouds keep their metadata
    ("172.16.0.0/12", "private address"),
    ("192.0.0.0/24", "protocol assignment"),
    ("192.0.2.0/24", "documentation address"),
    ("192.31.196.0/24", "AS112 address"),
    ("192.52.193.0/24", "AMT relay address"),
    ("192.88.99.0/24", "6to4 relay address"),
    ("192.168.0.0/16", "private address"),
    ("192.175.48.0/24", "AS112 address"),
    ("198.18.0.0/15", "benchmarking address"),
    ("198.51.100.0/24", "documentation address"),
    ("203.0.113.0/24", "documentation address"),
    ("224.0.0.0/4", "multicast address"),
    ("240.0.0.0/4", "reserved or broadcast address"),
    ("::/128", "unspecified address"),
    ("::1/128", "loopback address"),
    ("::/96", "IPv4-compatible address"),
    ("64:ff9b::/96", "NAT64 address, and no NAT64 is declared"),
    ("64:ff9b:1::/48", "local NAT64 address"),
    ("100::/64", "discard-only address"),
    ("2001::/23", "protocol assignment or Teredo address"),
    ("2001:db8::/32", "documentation address"),
    ("2002::/16", "6to4 address"),
    ("2620:4f:8000::/48", "AS112 address"),
    ("3fff::/20", "documentation address"),
    ("5f00::/16", "segment routing address"),
    ("fc00::/7", "private address"),
    ("fe80::/10", "link-local address"),
    ("fec0::/10", "site-local address"),  # deprecated by RFC 3879, still routed by some
    ("ff00::/8", "multicast address"),
)
_REASON_BY_NETWORK = {ip_network(network): reason for network, reason in _RESERVED}
REFUSED_NETWORKS = tuple(_REASON_BY_NETWORK)
"""What a second wall outside this process should refuse too."""

_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_LOW_32_BITS = 0xFFFF_FFFF

LONGEST_URL = 2048
"""Far longer than subscribers' URLs are: a longer one is a mistake or an attack, and costs time to parse."""

# Applied to the URL as written, before a parser maps or drops anything: `[v1.x]`, `:+443`, `@host` parse.
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]@:%]+)(?::[1-9][0-9]{0,4})?\Z")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")  # what the system's resolver would read as an address
_LONGEST_NAME = 253
_FIRST_UNPRIVILEGED_PORT = 1024
_WEB_PORTS = frozenset({80, 443})


class RefusedUrl(ValueError):
    """A subscriber's URL that must not be used, as its text alone shows. The message holds no part of it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be reached: the public internet over https, and what the operator allows.

    `allow` wins over every table, for exactly the networks that it names. `nat64` says that this host is on a
    network where 64:ff9b::/96 leads to the IPv4 address inside.
    """

    allow: tuple[Network, ...] = ()
    allow_http: bool = False
    nat64: bool = False

    @classmethod
    def of(cls, settings: EgressSettings) -> "Policy":
        """Make the policy of the configuration."""
        return cls(settings.allow, settings.allow_http, settings.nat64)

    def judge(self, text: str) -> str | None:
        """Judge an address as a resolver writes it, as `verdict` does."""
        address = read_address(text)
        return self.verdict(address) if address else "not an address in its usual spelling"

    def verdict(self, address: Address) -> str | None:
        """Return why `address` must not be dialled, in a few words; None if it may.

        An IPv4-mapped address is judged as the IPv4 address that the kernel would connect to.
        """
        if isinstance(address, IPv6Address):
            if address.scope_id:
                return "an address with a zone"
            address = address.ipv4_mapped or address
        if any(address in network for network in self.allow):
            return None
        if self.nat64 and address in _NAT64:
            return self.verdict(IPv4Address(int(address) & _LOW_32_BITS))
        for network, reason in _REASON_BY_NETWORK.items():
            if address in network:
                return reason
        if address.version == 6 and address not in _GLOBAL_UNICAST:
            return "not a global unicast address"
        return None


def check_url(text: str, policy: Policy) -> URL:
    """Read a subscriber's URL as requests will use it. Raises RefusedUrl with the reason.

    Only yarl parses it, and the host that yarl reads is dialled: a second parser might read another host. An
    address is judged at once; a name is judged at each look-up.
    """
    # What parsers drop, decode or read differently is refused before any parser sees it.
    if len(text) > LONGEST_URL:
        raise RefusedUrl(f"longer than {LONGEST_URL} characters")
    if " " in text or not text.isprintable():
        raise RefusedUrl("holds a space or an invisible character: write it percent-encoded")
    if "\\" in text:
        raise RefusedUrl("holds a backslash, so that programs disagree where the host ends")
    if "#" in text:
        raise RefusedUrl("holds a fragment (#…), which is never sent")
    try:
        written, url = URL(text, encoded=True), as_written(text)
    except (ValueError, IndexError):  # a name that IDNA cannot encode; yarl 1.25 trips over `https://[::1]@`
        # `from None`: the parser's own message holds what it could not read
        raise RefusedUrl("not a URL with a host that can be looked up, or its port is beyond 65535") from None
    if url.scheme == "http" and not policy.allow_http:
        raise RefusedUrl("http:// can be read on the way: use https://, or set allow_http in [egress]")
    if url.scheme not in ("http", "https"):
        raise RefusedUrl("must begin with https://")
    if "@" in written.raw_authority:
        raise RefusedUrl("holds a user or a password: use headers for credentials")
    if "%" in written.raw_authority:
        raise RefusedUrl("holds a percent sign in its host, where neither encoding nor a zone is accepted")
    if not _AUTHORITY.match(written.raw_authority):
        raise RefusedUrl("needs a host after the scheme, and perhaps a port")
    port = url.explicit_port
    if port is not None and port < _FIRST_UNPRIVILEGED_PORT and port not in _WEB_PORTS:
        raise RefusedUrl("its port belongs to another protocol: use 443, 80, or one from 1024 up")
    _check_host(url.raw_host or "", policy, is_ascii=written.raw_authority.isascii())
    return url


def read_address(text: object) -> Address | None:
    """Read an address in its one strict form: no octal, no hex, no missing parts. None if it is not one."""
    try:
        return ip_address(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _check_host(host: str, policy: Policy, *, is_ascii: bool) -> None:
    """Refuse addresses that must not be dialled, names that no public DNS has, and names that the system
    would read as an address."""
    if address := read_address(host):
        if not is_ascii:
            raise RefusedUrl("writes an address in unusual characters")
        if reason := policy.verdict(address):
            raise RefusedUrl(
                f"leads to a place that is not public ({reason}): if it is yours, add it to [egress] allow"
            )
        return
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > _LONGEST_NAME or not all(_LABEL.match(label) for label in labels):
        raise RefusedUrl("its host is not a name: each label has 1 to 63 letters, digits and dashes")
    if _NUMBER.match(labels[-1]):
        raise RefusedUrl("its host ends in a number but is not an address: write it as four decimal numbers")
    if len(labels) == 1:
        raise RefusedUrl(
            "its host is a single word, which may mean another host on each machine: write its full "
            "name, or its address"
        )
