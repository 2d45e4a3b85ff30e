"""Keeps the schedules in line with one configuration, beside workers that may have another one.

While a deploy replaces workers, old and new ones run side by side, and an old one may start once more. So
accounts are added at once, and forgotten only when no other worker to be seen has another list. Refuses to
know which list is the newer one: the one whose workers stay.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from watcher.run.presence import Present
from watcher.settings import Settings
from watcher.store.roster import Roster
from watcher.store.schedule import Schedule


class Enrolment:
    """The accounts of one generation on the roster. Methods raise StoreError."""

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,
        roster: Roster,
        present: Present,
        *,
        has_neighbours: Callable[[], bool] = lambda: False,
    ) -> None:
        self._has_neighbours = has_neighbours
        self.names_by_provider = names_by_provider(settings)
        self._list = digest(self.names_by_provider)
        self._schedule = schedule
        self._roster = roster
        self._present = present
        self._owes_removal = False
        self._answered: str | None = None

    async def begin(self) -> bool:
        """Bring the schedules in line; says whether no other worker has, in this state."""
        await self._present.has_list(self._list)
        await self._enroll()
        return await self._roster.note_enrolled(self._list)

    async def keep(self) -> bool:
        """Look every second whether that is still so, and mend it.

        Says whether the state was lost, and nobody had noticed before.
        """
        enrolled = await self._roster.enrolled()
        if enrolled is None:
            return await self.begin()
        if enrolled not in (self._list, self._answered):  # somebody came with another list
            self._answered = enrolled
            await self._enroll()
        elif self._owes_removal and await self._is_agreed():
            await self.begin()
        return False

    async def _enroll(self) -> None:
        self._owes_removal = not await self._is_agreed()
        await self._roster.enroll(
            self.names_by_provider, now_ms=self._schedule.now_ms(), forget=not self._owes_removal
        )

    async def _is_agreed(self) -> bool:
        """Say whether this list is the only one: this worker may have been given another one meanwhile.

        A worker of another deployment may only be restarting: its accounts are not this one's to forget.
        """
        lists = {self._present.roster, *await self._present.other_lists(self._schedule.now_ms())}
        return lists == {self._list} and not self._has_neighbours()


def names_by_provider(settings: Settings) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {name: [] for name in settings.provider_by_name}
    for account in settings.account_by_name.values():
        names[account.provider].append(account.name)
    return names


def digest(names_by_provider: Mapping[str, Sequence[str]]) -> str:
    """Name a list of accounts, the same in all workers that have it."""
    parts = (f"{provider} {name}" for provider, names in names_by_provider.items() for name in names)
    return blake2b("\n".join(sorted(parts)).encode(), digest_size=8).hexdigest()
