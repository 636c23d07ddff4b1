"""Which Events are written, and when: repeats are counted, bursts are one, few a minute. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sidecar.cluster.notices import Happening, Notice

WRITES_A_MINUTE = 20
GATHER_SECONDS = 1.0
"""From a first notice to its Event: what belongs together comes together."""
GROUP_ABOVE = 3
"""More targets of one kind of notice than this become one Event."""
NAMED_IN_GROUP = 5
REPEAT_SECONDS = 1800.0
"""The same again within this is counted on the Event that is there. API servers keep one for an
hour after its last change, unless told otherwise."""
MAX_PENDING, MAX_TOLD = 500, 200

Key = tuple[Happening, str]
EVERYBODY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One Event as it is to be written; times are unix seconds."""

    key: Key
    message: str
    count: int
    first_at: float
    last_at: float


class Outbox:
    """Takes notices at any rate; gives records at a bounded one, and keeps a bounded number."""

    def __init__(self) -> None:
        self._pending: dict[Key, Record] = {}
        self._told: dict[Key, tuple[str, Record]] = {}
        self._writes: deque[float] = deque(maxlen=WRITES_A_MINUTE)
        self._not_before = 0.0

    def add(self, notices: Iterable[Notice], now: float) -> None:
        """Keep what happened until it is taken; beyond ``MAX_PENDING`` the oldest is lost."""
        for one in notices:
            if not self._pending:
                self._not_before = max(self._not_before, now + GATHER_SECONDS)
            key = (one.happening, one.target)
            self._put(Record(key=key, message=one.message, count=1, first_at=now, last_at=now))

    def due_in(self, now: float) -> float | None:
        """Return the seconds until something may be written; None when there is nothing."""
        if not self._pending:
            return None
        full = len(self._writes) == WRITES_A_MINUTE
        room_at = self._writes[0] + 60.0 if full else now
        return max(0.0, self._not_before - now, room_at - now)

    def take(self, now: float) -> Record | None:
        """Take the next record, if it is due; it counts as a write."""
        if self.due_in(now) != 0.0:
            return None
        self._group()
        key = next(iter(self._pending))
        record = self._pending.pop(key)
        self._writes.append(now)
        return record

    def repeated(self, record: Record) -> tuple[str, Record]:
        """Return the name of the Event that ``record`` is counted on, and what it is then.

        Empty, and the record as it is, where it is a new one.
        """
        event, told = self._told.get(record.key, ("", record))
        if not event or record.first_at - told.last_at > REPEAT_SECONDS:
            return "", record
        return event, _sum(told, record)

    def written(self, record: Record, event: str) -> None:
        """Remember under which name an Event is there, and what it says."""
        self._told.pop(record.key, None)
        self._told[record.key] = (event, record)
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]

    def give_back(self, record: Record) -> None:
        """Keep what ``take`` gave and could not be written."""
        self._put(record)

    def hold(self, until: float) -> None:
        """Give nothing before ``until``."""
        self._not_before = until

    def _put(self, new: Record) -> None:
        old = self._pending.get(new.key)
        self._pending[new.key] = new if old is None else _sum(old, new)
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]

    def _group(self) -> None:
        for happening in Happening:
            keys = [key for key in self._pending if key[0] is happening]
            if len(keys) > GROUP_ABOVE:
                self._put(_grouped(happening, [self._pending.pop(key) for key in keys]))


def _sum(one: Record, other: Record) -> Record:
    newest = max(one, other, key=lambda record: record.last_at)
    first_at = min(one.first_at, other.first_at)
    return replace(newest, count=one.count + other.count, first_at=first_at)


def _grouped(happening: Happening, records: list[Record]) -> Record:
    names = [record.key[1] for record in records if record.key[1] != EVERYBODY]
    shown = ", ".join(names[:NAMED_IN_GROUP])
    more = f" and {len(names) - NAMED_IN_GROUP} more" if len(names) > NAMED_IN_GROUP else ""
    return Record(
        key=(happening, EVERYBODY),
        message=f"{len(names)} targets: {shown}{more}; the last: {records[-1].message}",
        count=sum(record.count for record in records),
        first_at=min(record.first_at for record in records),
        last_at=max(record.last_at for record in records),
    )
