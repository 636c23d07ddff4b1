"""What a round says of sources, and what it remembers of them."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.artifacts.listing import Look
from sidecar.core.desired import Desired, Entry
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.progress import Progress, asks
from sidecar.errors import ArtifactError, FetchFailed
from sidecar.patrol import Patrol
from tests.support.simulated import document, entry, revision


class Shelves:
    """Sources that all look the same, but for those that do not answer."""

    def __init__(self) -> None:
        self.mute: set[str] = set()
        self.asked: list[list[str]] = []

    def inventory(self) -> Inventory:
        return Inventory()

    async def look_all(self, entries: Iterable[Entry]) -> dict[str, Look | ArtifactError]:
        return {
            one.name: FetchFailed("it does not answer")
            if one.name in self.mute
            else Look(signature="s", newest_change=0.0)
            for one in entries
        }

    async def fetch_known(self, entries: Iterable[Entry]) -> dict[str, Revision]:
        self.asked.append(sorted(one.name for one in entries))
        return {}

    async def verify(self, revisions: Iterable[Revision]) -> tuple[Revision, ...]:
        return ()


class Round:
    """A patrol over residents of these names."""

    def __init__(self, *names: str) -> None:
        self.shelves = Shelves()
        self.desired: Desired = document(*map(entry, names))
        self.moved: list[str] = []
        self.patrol = Patrol(
            self.shelves,
            desired=lambda: self.desired,
            progress={
                name: Progress(revision=revision(name), asked=asks(entry(name))) for name in names
            },
            moved=self.moved.extend,
            lost=lambda: None,
            beat=lambda seconds: None,
            now=lambda: 100.0,
            is_busy=lambda: False,
            interval_seconds=10.0,
        )


async def test_a_source_that_does_not_answer_hides_no_change_of_another():
    one = Round("a", "b")
    one.shelves.mute = {"a"}
    await one.patrol.round_once(everything=True)
    assert one.moved == ["b"]


async def test_what_left_the_document_is_forgotten_and_looked_at_anew_when_it_comes_back():
    one = Round("a", "b")
    everything = one.desired
    await one.patrol.round_once(everything=True)
    await one.patrol.round_once(everything=True)
    assert one.shelves.asked == [["a", "b"]]
    one.desired = document(entry("b"))
    await one.patrol.round_once(everything=True)
    one.desired = everything
    await one.patrol.round_once(everything=True)
    assert one.shelves.asked == [["a", "b"], ["a"]]
