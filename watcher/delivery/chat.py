"""The chat target: deliveries as one message for people, in the format of a chat service."""

from collections.abc import Sequence

from yarl import URL

from watcher.delivery.egress import Policy, check_url
from watcher.delivery.formats.sentences import WIDTHS, sentence
from watcher.delivery.formats.services import SERVICES
from watcher.delivery.webhook import HttpTarget, Reading, WebhookTarget, post_head
from watcher.http import wire
from watcher.journal.events import Delivery
from watcher.settings import SubscriptionSettings


def target_of(settings: SubscriptionSettings, policy: Policy) -> HttpTarget:
    """Make the target of a subscription by its format. Raises RefusedUrl and BadSecret."""
    return WebhookTarget(settings, policy) if settings.format == "standard" else ChatTarget(settings, policy)


class ChatTarget:
    """A subscription of messages: a sentence for each event, each on its own line."""

    def __init__(self, settings: SubscriptionSettings, policy: Policy) -> None:
        self.name = settings.name
        self.settings = settings
        self._service = SERVICES[settings.format]
        self.most_together = self._service.most_together
        self.lead_to(check_url(settings.url.get_secret_value(), policy))

    def lead_to(self, url: URL) -> None:
        """Send to a URL that was checked."""
        self.url = url
        self.place = wire.place_of(url)
        self._head = post_head(url, self.settings.headers, self._service.content_type)

    def together(self, deliveries: Sequence[Delivery]) -> int:
        """Return how many deliveries fit into one message without being shortened; a single one that is too
        long is shortened."""
        lines = self._lines(deliveries[: self.most_together], self.settings.template, WIDTHS[0])
        count = len(lines)
        while count > 1 and not self._fits(self._service.escape("\n".join(lines[:count]))):
            count -= 1
        return count

    def request(self, deliveries: Sequence[Delivery], attempt: int, timestamp: int) -> bytes:
        body = self._service.write(self._fitting(deliveries), self.settings, deliveries)
        given = {name.lower() for name in self.settings.headers}
        headers = "".join(
            f"{name}: {value}\r\n"
            for name, value in self._service.headers(deliveries).items()
            if name not in given
        )
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (self._head, headers.encode(), len(body), body)

    def read(self, status: int, body: bytes) -> Reading:
        return self._service.read(status, body)

    def _fitting(self, deliveries: Sequence[Delivery]) -> str:
        """Write the sentence so that the service takes it: first texts from outside are shortened, then the
        template is left out."""
        template = self.settings.template
        for said, width in (*((template, width) for width in WIDTHS), (None, WIDTHS[-1])):
            text = self._service.escape("\n".join(self._lines(deliveries, said, width)))
            if self._fits(text):
                break
        return text

    def _lines(self, deliveries: Sequence[Delivery], template: str | None, width: int) -> list[str]:
        return [sentence(delivery, template, width=width) for delivery in deliveries]

    def _fits(self, text: str) -> bool:
        return self._service.size(text) <= self._service.limit
