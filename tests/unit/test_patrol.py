"""What a round says of sources, and what it remembers of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

import pytest

from sidecar.artifacts.listing import Look
from sidecar.core.backoff import Basis, Severity
from sidecar.core.desired import Desired, Entry
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.progress import Attempt, Progress, Stage, asks, tries
from sidecar.core.status import Reason
from sidecar.errors import AccessDenied, ArtifactError, FetchFailed, NotFound
from sidecar.patrol import Moves, Patrol
from sidecar.patrol.rounds import SHARE
from tests.support.simulated import document, entry, revision

NOW = 100.0


class Shelves:
    """Sources that look as the test says: by default like nothing that is held."""

    def __init__(self) -> None:
        self.looks: dict[str, Look | ArtifactError] = {}
        self.held: dict[tuple[str, str], Revision] = {}
        """By name and signature."""
        self.asked: list[list[str]] = []
        self.verified: list[str] = []
        self.unknown: set[str] = set()
        """Names of which nobody knows how their source looked."""

    def inventory(self) -> Inventory:
        return Inventory(revisions={name: (revision(name),) for name in ("a", "b", "c")})

    async def look_all(self, entries: Iterable[Entry]) -> dict[str, Look | ArtifactError]:
        names = [one.name for one in entries]
        self.asked.append(names)
        return {name: self.looks.get(name, look("s")) for name in names}

    def held_as(self, entry: Entry, signature: str) -> Revision | None:
        return self.held.get((entry.name, signature))

    def knows_source(self, revision: Revision) -> bool:
        return revision.name not in self.unknown

    async def verify(self, revisions: Iterable[Revision]) -> tuple[Revision, ...]:
        self.verified = [one.name for one in revisions]
        return ()


def look(signature: str, newest_change: float = 0.0) -> Look:
    return Look(signature=signature, newest_change=newest_change)


def local(name: str, **changes) -> Entry:
    return entry(name, f"/sources/{name}", **changes)


def fetched(one: Entry) -> Progress:
    return Progress(about=tries(one), asked=asks(one), revision=revision(one.name))


def refused(one: Entry, severity: Severity = Severity.REJECTED) -> Progress:
    attempt = Attempt(
        stage=Stage.FETCH,
        reason=Reason.INVALID_ARTIFACT,
        message="no LoRA",
        severity=severity,
        failures=1,
        retry_at=400.0,
        basis=Basis(),
    )
    return Progress(about=tries(one), fetch_attempt=attempt)


class Round:
    """A patrol over residents of these entries."""

    def __init__(self, *entries: Entry) -> None:
        self.shelves = Shelves()
        self.desired: Desired = document(*entries)
        self.moved: list[str] = []
        self.doubted: list[str] = []
        self.troubles: dict[str, str] = {}
        self.progress = {one.name: fetched(one) for one in entries}
        self.moves = Moves(
            self.shelves,
            progress=self.progress,
            moved=self._moved,
            looked=self.troubles.__setitem__,
        )
        self.patrol = Patrol(
            self.shelves,
            self.moves,
            desired=lambda: self.desired,
            lost=lambda: None,
            beat=lambda seconds: None,
            now=lambda: NOW,
            is_busy=lambda: False,
            interval_seconds=10.0,
        )

    def _moved(self, names: Iterable[str], *, is_sure: bool) -> None:
        (self.moved if is_sure else self.doubted).extend(names)

    async def go(self, *, everything: bool = True) -> list[str]:
        """Go round once; return who moved."""
        self.moved.clear()
        self.doubted.clear()
        await self.patrol.round_once(everything=everything)
        return [*self.moved, *self.doubted]

    async def look(self, *entries: Entry) -> list[str]:
        """Look at these sources once; return who moved."""
        self.moved.clear()
        await self.moves.look(entries, quiet_since=NOW - 1.0)
        return list(self.moved)


# What a look means.


async def test_a_source_that_does_not_answer_hides_no_change_of_another():
    one = Round(local("a"), local("b"))
    one.shelves.looks["a"] = FetchFailed("it does not answer")
    assert await one.go() == ["b"]


async def test_a_source_that_looks_as_when_it_was_fetched_has_not_moved():
    one = Round(local("a"))
    one.shelves.held["a", "s"] = revision("a")
    assert await one.go() == []
    one.shelves.looks["a"] = look("t")
    assert await one.go() == ["a"]
    assert await one.go() == []


async def test_where_nobody_knows_how_a_source_looked_it_is_not_sure_that_it_moved():
    one = Round(local("a"), local("b"), local("c"))
    one.shelves.unknown = {"a"}
    one.progress["c"] = refused(local("c"))
    await one.go()
    assert (one.moved, one.doubted) == (["b"], ["a", "c"])


async def test_a_source_that_looks_like_an_older_revision_has_moved():
    one = Round(local("a"))
    one.shelves.held["a", "s"] = revision("a", "v0")
    assert await one.go() == ["a"]


async def test_a_source_that_cannot_tell_has_not_moved():
    one = Round(local("a"))
    one.shelves.looks["a"] = look("")
    assert await one.go() == []


@pytest.mark.parametrize(("newest_change", "moved"), [(99.5, []), (98.5, ["a"])])
async def test_a_source_that_is_being_written_is_left_until_it_is_quiet(newest_change, moved):
    one = Round(local("a"))
    one.shelves.looks["a"] = look("s", newest_change)
    assert await one.go(everything=False) == moved
    # Whoever edits the document says that it is done.
    assert await one.go() == ([] if moved else ["a"])


async def test_what_left_the_document_is_forgotten_and_looked_at_anew_when_it_comes_back():
    one = Round(local("a"), local("b"))
    everything = one.desired
    assert await one.go() == ["a", "b"]
    assert await one.go() == []
    one.desired = document(local("b"))
    assert await one.go() == []
    one.desired = everything
    assert await one.go() == ["a"]


async def test_a_source_that_the_agent_cannot_see_moves_when_it_can():
    one = Round(local("a"))
    hub = revision("a", "as-it-is", source="/sources/a", verified=False)
    one.progress["a"] = replace(one.progress["a"], revision=hub)
    one.shelves.looks["a"] = look("as-it-is")
    assert await one.go() == []
    one.shelves.looks["a"] = look("files")
    assert await one.go() == ["a"]


async def test_an_edit_during_the_look_makes_it_worth_nothing():
    one = Round(local("a"))
    look_all = one.shelves.look_all

    async def edit_meanwhile(entries):
        found = await look_all(entries)
        one.progress["a"] = replace(one.progress["a"], asked=("/elsewhere", None))
        return found

    one.shelves.look_all = edit_meanwhile  # type: ignore[method-assign]
    assert await one.go() == []


# Which sources are looked at.


@pytest.mark.parametrize(
    ("one", "progress", "watched"),
    [
        (local("a"), fetched(local("a")), True),
        (local("a"), Progress(), False),
        (local("a"), None, False),
        (local("a"), fetched(local("a", digest="sha256:1")), False),
        (local("a", digest="sha256:1"), fetched(local("a", digest="sha256:1")), False),
        (local("a"), refused(local("a")), True),
        (local("a"), refused(local("a"), Severity.TRANSIENT), False),
        (local("a"), refused(entry("a", "/other")), False),
    ],
)
def test_a_look_is_worth_it_of_what_was_fetched_or_refused(one, progress, watched):
    round = Round(one)
    if progress is None:
        round.progress.clear()
    else:
        round.progress["a"] = progress
    assert round.moves.is_watched(one) is watched


async def test_what_was_refused_is_tried_again_as_soon_as_it_looks_otherwise():
    one = Round(local("a"))
    one.progress["a"] = refused(local("a"))
    # It may have been mended before anybody looked.
    assert await one.go() == ["a"]
    assert await one.go() == []
    one.shelves.looks["a"] = look("mended")
    assert await one.go() == ["a"]


@pytest.mark.parametrize("everything", [False, True])
async def test_rounds_leave_servers_and_those_that_say_how_often_alone(everything):
    one = Round(
        local("a"),
        entry("b", "file:///sources/b"),
        entry("c", "s3://bucket/c"),
        entry("d", "s3://bucket/d", refresh_seconds=5.0),
        local("e", refresh_seconds=5.0),
        entry("f", "https://host/f.tar"),
        entry("g", "org/repo"),
    )
    await one.go(everything=everything)
    assert one.shelves.asked == [["a", "b", "g"]]
    # Their files are looked after all the same.
    assert one.shelves.verified == ["a", "b", "c"]


async def test_servers_take_no_place_in_the_share_of_a_round():
    far = [entry(f"far{number}", f"s3://bucket/{number}") for number in range(3 * SHARE)]
    one = Round(*far, local("a"), *(local(f"l{number}") for number in range(SHARE)))
    await one.go(everything=False)
    await one.go(everything=False)
    first, second = one.shelves.asked
    assert len(first) == len(second) == SHARE
    assert {*first, *second} == {"a", *(f"l{number}" for number in range(SHARE))}


async def test_nobody_is_asked_where_nothing_is_worth_a_look():
    one = Round(entry("a", "s3://bucket/a"))
    await one.go()
    assert one.shelves.asked == []


# What is told of looks that fail.


async def test_a_look_that_fails_is_told_once_and_so_is_its_end(caplog):
    caplog.set_level(logging.INFO, "model_sidecar.patrol")
    far = entry("a", "s3://bucket/a", refresh_seconds=5.0)
    one = Round(far)
    one.shelves.held["a", "s"] = revision("a")
    said = []
    for answer in (
        AccessDenied("403 from s3://bucket/a (request 1)"),
        AccessDenied("403 from s3://bucket/a (request 2)"),
        NotFound("404 from s3://bucket/a"),
        look("s"),
        look("s"),
        AccessDenied("403 from s3://bucket/a (request 3)"),
    ):
        one.shelves.looks["a"] = answer
        assert await one.look(far) == []
        said.append((one.troubles["a"], len(caplog.records)))
    assert said == [
        ("403 from s3://bucket/a (request 1)", 1),
        ("403 from s3://bucket/a (request 2)", 1),
        ("404 from s3://bucket/a", 2),
        ("", 3),
        ("", 3),
        ("403 from s3://bucket/a (request 3)", 4),
    ]
    assert [record.levelname for record in caplog.records] == [
        "WARNING",
        "WARNING",
        "INFO",
        "WARNING",
    ]
    assert "s3://bucket/a" in caplog.text


async def test_the_trouble_of_what_left_is_forgotten(caplog):
    one = Round(local("a"))
    everything = one.desired
    one.shelves.looks["a"] = NotFound("nothing at /sources/a")
    await one.go()
    one.desired = document()
    await one.go()
    one.desired = everything
    await one.go()
    assert len(caplog.records) == 2
