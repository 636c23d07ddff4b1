"""Twenty pods, one S3 and one edit: all at once, or spread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.s3 import S3
from sidecar.core.places import place_of
from tests.support.pods import Crowd, PodUnderTest, longest_above, most_at_once, open_pods
from tests.support.s3_front import S3Front, native, write_lora_of

pytestmark = pytest.mark.sources

MIB = 1 << 20
PODS = 20
SHARE = 0.25
SIZE = MIB
FETCH_SECONDS = 0.5
LOAD_SECONDS = 0.25
SPREAD_SECONDS = 10.0
BEYOND_SECONDS = 6.0
"""After the last pod's turn: its fetch and its load, on a busy machine."""


@pytest.fixture
def front(s3: S3) -> Iterator[S3Front]:
    """The S3 server with a proxy of this test's own."""
    with S3Front(s3) as front:
        yield front


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What one edit did to all pods. Seconds; figures of pods in their order."""

    turns: list[float]
    """From the edit to the first request for the new revision."""
    peak: int
    """Fetches that had bytes in flight at one time."""
    fetching: float
    """The longest time at which more than a quarter of the pods fetched or loaded."""
    missing: float
    """The longest time at which the name was gone in more than a quarter of the pods."""
    missing_at_once: int
    converged: float
    dropped: float
    """Until the last pod had unloaded what left the document."""
    added: float
    """Until the last pod held what is new in the document."""
    told: set[str]


class Fleet:
    """The pods, and the sources that they are given."""

    def __init__(self, front: S3Front, work: Path, pods: list[PodUnderTest]) -> None:
        self._front = front
        self._pods = pods
        self._generation = 0
        self._beside = ""
        self._loras = work / "loras"

    async def apply(self, version: str, *, beside: str, spread: float = 0.0) -> Edit:
        """Make ``sql`` this version, and ``beside`` the only other target; wait for all pods."""
        lora = write_lora_of(self._loras / version, size=SIZE, seed=int(version[1:]))
        side = write_lora_of(self._loras / "side")
        sources = {
            "sql": self._front.put_tree(version, lora),
            beside: self._front.put_tree("side", side),
        }
        dropped, self._beside = self._beside, beside
        crowd = Crowd(SIZE / FETCH_SECONDS)
        self._front.proxy.add(crowd, path=f"{self._front.path(version)}more", times=None)
        self._generation += 1
        for pod in self._pods:
            pod.told.clear()
        edited = time.monotonic()
        for pod in self._pods:
            pod.agent.write(native(sources))
        seconds = spread + BEYOND_SECONDS
        await asyncio.gather(*(pod.wait_converged(self._generation, seconds) for pod in self._pods))
        converged = time.monotonic() - edited
        begins = [pod.asked_at(version) for pod in self._pods]
        loads = [pod.ended_at("load sql") for pod in self._pods]
        gaps = [pod.gap("sql") for pod in self._pods] if self._generation > 1 else [(0.0, 0.0)]
        drops = dropped not in {"", beside}
        drop = [pod.ended_at(f"unload {dropped}") if drops else edited for pod in self._pods]
        add = [pod.ended_at(f"load {beside}") for pod in self._pods]
        limit = SHARE * len(self._pods)
        return Edit(
            turns=[at - edited for at in begins],
            peak=crowd.peak,
            fetching=longest_above(zip(begins, loads, strict=True), limit),
            missing=longest_above(gaps, limit),
            missing_at_once=most_at_once(gaps),
            converged=converged,
            dropped=max(drop) - edited,
            added=max(add) - edited,
            told={reason for pod in self._pods for reason in pod.told},
        )


def in_words(edit: Edit) -> str:
    """One line of figures."""
    share = f"{SHARE:.0%} of the pods"
    return (
        f"{edit.peak} fetches at once at most; more than {share} fetched or loaded for "
        f"{edit.fetching:.1f} s; the name was gone in more than {share} for {edit.missing:.1f} s "
        f"(in {edit.missing_at_once} at once at most); all converged after {edit.converged:.1f} s, "
        f"what was dropped was gone everywhere after {edit.dropped:.1f} s, and what was new was "
        f"there after {edit.added:.1f} s"
    )


async def test_a_spread_edit_never_has_many_pods_fetching_or_replacing_at_once(
    front, tmp_path, capsys, record_property
):
    users = [front.s3.iam.make_user(f"pod-{index}", [front.bucket]) for index in range(PODS)]
    async with open_pods(tmp_path, front, users, load_seconds=LOAD_SECONDS) as pods:
        fleet = Fleet(front, tmp_path, pods)
        await fleet.apply("v1", beside="chat")
        at_once = await fleet.apply("v2", beside="code")
    flags = {"load_seconds": LOAD_SECONDS, "spread_seconds": SPREAD_SECONDS}
    async with open_pods(tmp_path / "spread", front, users, **flags) as pods:
        fleet = Fleet(front, tmp_path / "spread", pods)
        first = await fleet.apply("v11", beside="chat")
        edits = [
            await fleet.apply("v12", beside="code", spread=SPREAD_SECONDS),
            await fleet.apply("v13", beside="code", spread=SPREAD_SECONDS),
        ]
    places = [SPREAD_SECONDS * place_of(f"uid-{index:02}") for index in range(PODS)]
    figures = {
        "at_once": in_words(at_once),
        "spread": in_words(edits[0]),
        "first_load": f"{first.peak} fetches at once, all converged after {first.converged:.1f} s",
    }
    for name, words in figures.items():
        record_property(name, words)
    with capsys.disabled():
        print(f"\n{PODS} pods, a fetch of {FETCH_SECONDS} s, a load of {LOAD_SECONDS} s, ", end="")
        print(f"--spread-seconds {SPREAD_SECONDS:g}")
        print("\n".join(f"{name}: {words}" for name, words in figures.items()))
    # Nobody waits for a first load, nor for what is new or leaves.
    assert "Spread" not in first.told
    assert first.peak > PODS / 2
    assert max(edits[0].dropped, edits[0].added) < SPREAD_SECONDS / 3
    # A pod keeps its place from edit to edit, and never begins before it.
    for edit in edits:
        assert "Spread" in edit.told
        late = [turn - place for turn, place in zip(edit.turns, places, strict=True)]
        assert min(late) > -0.05
        assert max(late) < BEYOND_SECONDS
    # What it is for.
    assert at_once.peak > PODS / 2
    for edit in edits:
        assert edit.peak <= at_once.peak / 2
        assert edit.fetching <= at_once.fetching / 2
        assert edit.missing_at_once <= at_once.missing_at_once / 2
        assert edit.missing <= at_once.missing / 2
