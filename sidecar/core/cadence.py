"""When the next sample of the engine is due: as often as its figures move, as seldom as may be.

Rendering its page costs the engine the time that it needs for it, in the process that also serves
requests. So the share of its time that we ask for is bounded, and four times smaller while nothing
changes. A sample is never so late that the figures would turn stale before the answer is there,
and never earlier than the configured interval. That somebody must have asked since the last one is
the caller's part. Pure: time comes in as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidecar.core.translate import Sample

CHANGING_SHARE = 0.04
"""At most this part of the engine's time is spent answering us while its figures change."""
STEADY_SHARE = 0.01
"""And this while they stay what they were."""
GROWTH = 1.5
"""How much longer every further pause is while nothing changes."""
RESERVE = 0.5
"""This part of the time until figures turn stale is kept for an answer that takes long, and for
another attempt after one that failed."""
REMEMBERED = 8
"""A busy machine makes scrapes seem dear: the least of so many is what one costs."""
NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """The past of the sampling, as far as the next sample depends on it. Replaced, never changed.

    Times are seconds on the caller's clock.
    """

    interval_seconds: float
    """From the beginning of one scrape to that of the next, at least."""
    stale_after_seconds: float
    began_at: float = NEVER
    ended_at: float = NEVER
    """When the last scrape began and ended, whatever became of it."""
    taken_at: float = NEVER
    """When the last good answer was complete, the first one of several ranks."""
    pause_seconds: float = 0.0
    """From the beginning of the last scrape to that of the next, unless a bound says otherwise."""
    took_seconds: tuple[float, ...] = ()
    """How long the last good scrapes took, the newest last."""

    @property
    def due_at(self) -> float:
        """When the next scrape is to begin, if somebody asked."""
        wanted = min(self.began_at + self.pause_seconds, self.latest_at)
        return max(self.began_at + self.interval_seconds, wanted)

    @property
    def latest_at(self) -> float:
        """When it must begin for its answer to arrive in time, also when it takes twice as long as
        the longest that is remembered."""
        stale_at = self.taken_at + self.stale_after_seconds
        longest = max(self.took_seconds, default=0.0)
        return stale_at - max(RESERVE * self.stale_after_seconds, 2 * longest)

    def is_late(self, now: float) -> bool:
        """Tell whether who asks first now should wait for the sample: it is overdue, as nobody
        asked, and what there is has grown old."""
        # Nothing fails, and what there is may not be served: then only waiting helps.
        if self.taken_at >= self.began_at and now > self.taken_at + self.stale_after_seconds:
            return True
        overdue_at = max(self.due_at, self.ended_at) + self.interval_seconds
        return now > max(overdue_at, self.taken_at + RESERVE * self.stale_after_seconds)

    def sampled(self, began: float, taken: float, ended: float, *, changed: bool) -> Cadence:
        """A scrape ended well; ``changed``: its figures differ from the last ones."""
        took = (*self.took_seconds, ended - began)[-REMEMBERED:]
        cost = min(took)
        shortest = max(self.interval_seconds, cost / CHANGING_SHARE)
        # What was equal after a long pause, or after failures, may have been anything meanwhile.
        apart = began - self.taken_at > self.stale_after_seconds
        pause = shortest
        if not changed and not apart:
            longest = max(shortest, cost / STEADY_SHARE)
            pause = min(max(shortest, self.pause_seconds * GROWTH), longest)
        return replace(
            self,
            began_at=began,
            ended_at=ended,
            taken_at=taken,
            pause_seconds=pause,
            took_seconds=took,
        )

    def failed(self, began: float, ended: float) -> Cadence:
        """A scrape failed: the next is due after the interval, and so is the one after a good
        answer then."""
        return replace(self, began_at=began, ended_at=ended, pause_seconds=0.0)

    def hastened(self) -> Cadence:
        """Something changed that the figures do not tell yet: look as soon as is allowed."""
        return replace(self, pause_seconds=0.0)


def has_changed(before: Sample | None, after: Sample) -> bool:
    """Tell whether the engine did anything between two samples."""
    if before is None or after.lora_activity:
        return True
    return _figures(before) != _figures(after)


def _figures(sample: Sample) -> tuple[object, ...]:
    # A mean of running requests goes on falling for seconds after the last one: where it is made
    # of counters, they tell.
    running = (sample.running_told, sample.busy) if sample.busy else sample.running
    return (
        sample.queued,
        running,
        sample.kv_usage,
        sample.block_size,
        sample.num_blocks,
        sample.lora_running,
        sample.lora_waiting,
        sample.max_loras,
        sample.started_at,
    )
