"""Builders of signed webhooks, for the tests of both sides."""

import json
from typing import Any, NamedTuple

from watcher.delivery.signing import Signer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "b3RoZXIg" * 4
PRIVATE = "whsk_VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk="
NOW = 1_795_175_095


class Webhook(NamedTuple):
    headers: dict[str, str]
    body: bytes

    def but(self, **headers: str | None) -> "Webhook":
        """The same with other headers, named without their `webhook-`; None removes one."""
        changed = self.headers | {f"webhook-{name}": value for name, value in headers.items()}
        return Webhook({name: value for name, value in changed.items() if value is not None}, self.body)


def an_event(number: int = 1, **changed: Any) -> dict[str, Any]:
    return {
        "id": f"evt_{number}",
        "type": "deposit.cleared",
        "timestamp": "2026-11-20T14:03:05.120Z",
        "data": a_change(sequence=number),
        "subscription": {"name": "ops", "previous_sequence": number - 1 or None},
    } | changed


def a_change(**changed: Any) -> dict[str, Any]:
    return {
        "account": {"name": "treasury", "provider": "loopring"},
        "asset": {"id": "1", "symbol": "LRC", "name": "Loopring", "decimals": 18},
        "sequence": 1,
        "amount": "12.5",
        "effect": {
            "total": "12.5",
            "locked": "0",
            "pending_deposit": "-12.5",
            "pending_withdrawal": "0",
        },
    } | changed


def signed(
    body: bytes | dict[str, Any] | None = None, *secrets: str, event_id: str = "evt_1", at: int = NOW
) -> Webhook:
    """A webhook as it is sent: by default an event, signed with SECRET at NOW."""
    if not isinstance(body, bytes):
        body = json.dumps(body or an_event()).encode()
    headers = {
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        "webhook-signature": Signer(secrets or [SECRET]).signature(event_id, at, body),
    }
    return Webhook(headers, body)
