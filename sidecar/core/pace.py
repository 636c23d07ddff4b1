"""How fast a fetch gets on, by what was heard of it lately. Pure: time comes in as an argument."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_SECONDS = 8.0
"""The rate is that of so long: a shorter one jumps, a longer one hides that it slowed down."""
STEP_SECONDS = 0.5
"""At least between two steps that are remembered."""
SETTLE_SECONDS = 0.5
"""What is told this soon counts for no rate: an interrupted fetch tells at once what it left."""
LEAST_SECONDS = 1.0
"""A rate of less time says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What was heard, in steps. Replaced, never changed."""

    began_at: float
    done: int
    """Bytes by what was heard last."""
    steps: tuple[tuple[float, int], ...]
    """When, in seconds, and the bytes by then; the oldest may lie before the window."""

    def heard(self, done: int, now: float) -> Pace:
        """Return the pace after ``done`` bytes were told of."""
        if done < self.done:
            return begin(done, now)
        steps = self.steps
        if now < self.began_at + SETTLE_SECONDS:
            steps = ((now, done),)
        elif now >= steps[-1][0] + STEP_SECONDS:
            while len(steps) > 1 and steps[1][0] <= now - WINDOW_SECONDS:
                steps = steps[1:]
            steps = (*steps, (now, done))
        return Pace(began_at=self.began_at, done=done, steps=steps)

    def per_second(self, now: float) -> float | None:
        """Return bytes a second until ``now``; None while too little was heard to tell."""
        before = [step for step in self.steps if step[0] <= now - WINDOW_SECONDS]
        since, base = before[-1] if before else self.steps[0]
        seconds = now - since
        return (self.done - base) / seconds if seconds >= LEAST_SECONDS else None


def begin(done: int, now: float) -> Pace:
    """Return the pace of a fetch that is heard of for the first time, or anew."""
    return Pace(began_at=now, done=done, steps=((now, done),))
