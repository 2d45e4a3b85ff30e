"""The duty to get one event to one subscription, as bytes that wait in a queue.

Refuses to know how it gets there, and to read what it did not write.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delivery:
    """The duty to get one event to one subscription. `head` names it inside its queue."""

    event_id: str
    type: str
    sequence: int
    body: bytes

    @property
    def head(self) -> bytes:
        return f"{self.event_id} {self.sequence} {self.type}\n".encode()

    def dump(self) -> bytes:
        return self.head + self.body


def load_delivery(entry: bytes) -> Delivery:
    """Read a queue's entry. Raises ValueError on anything that `Delivery.dump` did not write."""
    head, newline, body = entry.partition(b"\n")
    event_id, sequence, event_type = head.decode("ascii").split(" ")
    if not newline or not body:
        raise ValueError("a delivery without a body")
    delivery = Delivery(event_id, event_type, int(sequence), body)
    if delivery.head != head + newline:  # int() reads `1_0` too, and no settling would ever find it
        raise ValueError("a delivery under another name")
    return delivery
