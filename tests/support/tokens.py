"""A contract for a real chain, assembled here: a token as small as can be, right or wrong in each part.

The balance of an address lies in the storage at that address.
"""

from collections.abc import Mapping, Sequence

Part = int | str | bytes
"""A number or bytes to push, or the name of an instruction."""

_OP = {
    "ADD": 0x01,
    "SUB": 0x03,
    "EQ": 0x14,
    "SHR": 0x1C,
    "CALLER": 0x33,
    "CALLDATALOAD": 0x35,
    "CODECOPY": 0x39,
    "MSTORE": 0x52,
    "SLOAD": 0x54,
    "SSTORE": 0x55,
    "JUMPI": 0x57,
    "JUMPDEST": 0x5B,
    "DUP1": 0x80,
    "RETURN": 0xF3,
    "REVERT": 0xFD,
}


def erc20(
    supply: int, *, decimals: int | None = 18, symbol: str | bytes | None = "TST", balance: bool = True
) -> bytes:
    """Code that deploys a token and gives its sender all of it.

    `symbol` is text, 32 bytes as the first tokens had it, or None: the call fails. So it does where there are
    no `decimals`, or no `balance`.
    """
    bodies: dict[str, Sequence[Part]] = {"a9059cbb": _TRANSFER}
    if balance:
        bodies["70a08231"] = (4, "CALLDATALOAD", "SLOAD", *_RETURN_WORD)
    if decimals is not None:
        bodies["313ce567"] = (decimals, *_RETURN_WORD)
    if isinstance(symbol, str):
        offset_and_size = (32, 0, "MSTORE", len(symbol), 32, "MSTORE")
        bodies["95d89b41"] = (
            *offset_and_size,
            symbol.encode().ljust(32, b"\0"),
            64,
            "MSTORE",
            96,
            0,
            "RETURN",
        )
    elif symbol is not None:
        bodies["95d89b41"] = (symbol.ljust(32, b"\0"), *_RETURN_WORD)
    code = _with_functions(bodies)
    head = _assembled((supply, "CALLER", "SSTORE"))
    size = len(code).to_bytes(2)
    last = len(_assembled((size, "DUP1", 0, 0, "CODECOPY", 0, "RETURN")))
    return head + _assembled((size, "DUP1", len(head) + last, 0, "CODECOPY", 0, "RETURN")) + code


_RETURN_WORD = (0, "MSTORE", 32, 0, "RETURN")
_TRANSFER = (
    *(36, "CALLDATALOAD", "DUP1", "CALLER", "SLOAD", "SUB", "CALLER", "SSTORE"),
    *(4, "CALLDATALOAD", "SLOAD", "ADD", 4, "CALLDATALOAD", "SSTORE", 1, *_RETURN_WORD),
)


def _with_functions(bodies: Mapping[str, Sequence[Part]]) -> bytes:
    """Code that goes by the first four bytes of what it is sent, and fails for any it does not know."""
    head_size = len(_assembled((0, "CALLDATALOAD", 0xE0, "SHR")))
    entry_size = len(_assembled(("DUP1", b"\1" * 4, "EQ", b"\0\0", "JUMPI")))
    failing = _assembled((0, "DUP1", "REVERT"))
    at = head_size + entry_size * len(bodies) + len(failing)
    entries, blocks = b"", b""
    for selector, body in bodies.items():
        entries += _assembled(
            ("DUP1", bytes.fromhex(selector), "EQ", (at + len(blocks)).to_bytes(2), "JUMPI")
        )
        blocks += _assembled(("JUMPDEST", *body))
    return _assembled((0, "CALLDATALOAD", 0xE0, "SHR")) + entries + failing + blocks


def _assembled(parts: Sequence[Part]) -> bytes:
    """Assemble: a name is an instruction; numbers and bytes are pushed, numbers in as few bytes as can be."""
    code = b""
    for part in parts:
        if isinstance(part, str):
            code += bytes([_OP[part]])
        else:
            pushed = part if isinstance(part, bytes) else part.to_bytes(max(1, (part.bit_length() + 7) // 8))
            code += bytes([0x5F + len(pushed)]) + pushed
    return code
