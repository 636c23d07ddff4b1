"""One test body for every engine: what the port promises, fake or real."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import pytest

from adapters.base import (
    EngineAdapter,
    EngineRejected,
    EngineUnavailable,
    EngineUnsupported,
    FiguresAdapter,
    Kind,
    Residency,
    Target,
)
from sidecar.core.translate import translate


class EngineRig(Protocol):
    """One engine to try, and the outside of it: files, requests, its process."""

    adapter: EngineAdapter
    kind: Kind

    def write(self, seed: int) -> str:
        """Write a good revision of its own; return its path. Another seed, other answers."""
        ...

    def nonsense(self) -> str:
        """Write a directory that no engine can load."""
        ...

    async def answer(self, name: str) -> str:
        """Ask a target something; return what tells which bytes answered."""
        ...

    async def stop(self) -> None: ...

    async def start(self) -> None: ...


async def replace(rig: EngineRig, target: Target, path: str) -> None:
    """Bring another revision in, the way this engine does it."""
    if not rig.adapter.capabilities.replaces_in_place:
        await rig.adapter.unload(target)
    await rig.adapter.load(target, path)


async def resident_names(rig: EngineRig) -> set[str]:
    state = await rig.adapter.observe()
    return {one.name for one in state.residents if one.state is Residency.RESIDENT}


class EngineContract:
    """Subclasses give the fixture ``rig``: a running engine that holds nothing of ours."""

    revives = False
    """A request for a name that was unloaded makes the engine load it again."""

    async def test_an_empty_engine_is_seen_as_empty(self, rig: EngineRig):
        state = await rig.adapter.observe()
        assert state.residents == ()
        assert state.asleep is False
        assert bool(state.base_names) is rig.adapter.capabilities.serves_alone
        assert (state.base_model in state.base_names) is rig.adapter.capabilities.serves_alone

    async def test_what_is_loaded_is_seen_and_answers(self, rig: EngineRig):
        target, path = Target(name="one", kind=rig.kind), rig.write(1)
        await rig.adapter.load(target, path)
        (resident,) = (await rig.adapter.observe()).residents
        assert (resident.name, resident.kind, resident.state) == (
            "one",
            rig.kind,
            Residency.RESIDENT,
        )
        if rig.adapter.capabilities.reports_paths:
            assert resident.paths == {path}
        assert await rig.answer("one") == await rig.answer("one")

    async def test_several_targets_are_held_side_by_side(self, rig: EngineRig):
        targets = [Target(name=name, kind=rig.kind) for name in ("one", "two", "three-3.b_c")]
        paths = [rig.write(seed) for seed in (1, 2, 3)]
        await asyncio.gather(*map(rig.adapter.load, targets, paths))
        assert await resident_names(rig) == {"one", "two", "three-3.b_c"}
        answers = {await rig.answer(target.name) for target in targets}
        assert len(answers) == 3

    async def test_unload_forgets_one_and_leaves_the_others(self, rig: EngineRig):
        one, two = Target(name="one", kind=rig.kind), Target(name="two", kind=rig.kind)
        await rig.adapter.load(one, rig.write(1))
        await rig.adapter.load(two, rig.write(2))
        await rig.adapter.unload(one)
        assert {one.name for one in (await rig.adapter.observe()).residents} == {"two"}
        await rig.answer("two")
        if self.revives:
            await rig.answer("one")
            assert await resident_names(rig) == {"one", "two"}
        else:
            with pytest.raises(Exception, match="one"):
                await rig.answer("one")

    async def test_unload_of_an_unknown_name_is_no_error(self, rig: EngineRig):
        await rig.adapter.unload(Target(name="never-seen", kind=rig.kind))
        assert await resident_names(rig) == set()

    async def test_a_name_can_come_back_after_an_unload(self, rig: EngineRig):
        target, path = Target(name="one", kind=rig.kind), rig.write(1)
        await rig.adapter.load(target, path)
        before = await rig.answer("one")
        await rig.adapter.unload(target)
        await rig.adapter.load(target, path)
        assert await rig.answer("one") == before

    async def test_loading_the_same_again_is_no_error(self, rig: EngineRig):
        target, path = Target(name="one", kind=rig.kind), rig.write(1)
        await rig.adapter.load(target, path)
        before = await rig.answer("one")
        await rig.adapter.load(target, path)
        assert await rig.answer("one") == before

    async def test_nonsense_is_rejected_and_leaves_the_others_alone(self, rig: EngineRig):
        await rig.adapter.load(Target(name="good", kind=rig.kind), rig.write(1))
        before = await rig.answer("good")
        with pytest.raises(EngineRejected) as caught:
            await rig.adapter.load(Target(name="bad", kind=rig.kind), rig.nonsense())
        assert type(caught.value) is EngineRejected
        assert await resident_names(rig) == {"good"}
        assert await rig.answer("good") == before

    async def test_a_path_that_does_not_exist_is_rejected(self, rig: EngineRig, tmp_path: Path):
        with pytest.raises(EngineRejected):
            await rig.adapter.load(Target(name="bad", kind=rig.kind), str(tmp_path / "none"))
        assert await resident_names(rig) == set()

    async def test_another_revision_answers_after_a_replacement_and_a_rollback(
        self, rig: EngineRig
    ):
        target, first, second = Target(name="one", kind=rig.kind), rig.write(1), rig.write(2)
        await rig.adapter.load(target, first)
        answers = [await rig.answer("one")]
        for path in (second, first, second):
            await replace(rig, target, path)
            answers.append(await rig.answer("one"))
        assert answers[0] != answers[1]
        assert answers == [answers[0], answers[1]] * 2

    async def test_a_bad_replacement_does_not_cost_the_old_revision(self, rig: EngineRig):
        target, path = Target(name="one", kind=rig.kind), rig.write(1)
        await rig.adapter.load(target, path)
        before = await rig.answer("one")
        with pytest.raises(EngineRejected):
            await replace(rig, target, rig.nonsense())
        if not rig.adapter.capabilities.replaces_in_place:
            await rig.adapter.load(target, path)
        assert await resident_names(rig) == {"one"}
        assert await rig.answer("one") == before
        await replace(rig, target, rig.write(2))
        assert await rig.answer("one") != before

    async def test_a_parameter_that_the_engine_has_not_is_rejected_by_name(self, rig: EngineRig):
        target = Target(name="one", kind=rig.kind, parameters={"no_such_thing": 1})
        with pytest.raises(EngineRejected, match="no_such_thing"):
            await rig.adapter.load(target, rig.write(1))
        assert await resident_names(rig) == set()

    async def test_a_kind_that_the_engine_cannot_hold_is_unsupported(self, rig: EngineRig):
        for kind in set(Kind) - rig.adapter.capabilities.kinds:
            with pytest.raises(EngineUnsupported):
                await rig.adapter.load(Target(name="one", kind=kind), rig.write(1))

    async def test_no_target_takes_the_name_of_a_base_model(self, rig: EngineRig):
        for name in (await rig.adapter.observe()).base_names:
            with pytest.raises(EngineRejected):
                await rig.adapter.load(Target(name=name, kind=rig.kind), rig.write(1))

    async def test_warming_is_answered_or_unsupported(self, rig: EngineRig):
        target = Target(name="one", kind=rig.kind)
        await rig.adapter.load(target, rig.write(1))
        if rig.adapter.capabilities.warms:
            await rig.adapter.warm(target)
            with pytest.raises(EngineRejected):
                await rig.adapter.warm(Target(name="never-seen", kind=rig.kind))
        else:
            with pytest.raises(EngineUnsupported):
                await rig.adapter.warm(target)

    async def test_the_page_has_what_the_metric_map_says(self, rig: EngineRig):
        await rig.adapter.load(Target(name="one", kind=rig.kind), rig.write(1))
        (page,) = await rig.adapter.scrape()
        figures = rig.adapter.metric_map
        families = [*(series.name for series in figures.queued), *figures.present]
        assert any(f"\n{family}".encode() in page for family in families)
        if figures.started_at is not None:
            assert f"\n{figures.started_at.name} ".encode() in page

    async def test_the_figures_alone_are_those_of_the_page(self, rig: EngineRig):
        await rig.adapter.load(Target(name="one", kind=rig.kind), rig.write(1))
        figures = rig.adapter.metric_map
        if isinstance(rig.adapter, FiguresAdapter):
            # What it says is compared with the whole page before it is believed.
            await rig.adapter.scrape_figures()
            alone = await rig.adapter.scrape_figures()
        else:
            alone = await rig.adapter.scrape()
        whole = await rig.adapter.scrape()
        assert translate(alone, figures, None, 0.0) == translate(whole, figures, None, 0.0)

    async def test_a_stopped_engine_is_unavailable_and_a_new_one_is_empty(self, rig: EngineRig):
        target, path = Target(name="one", kind=rig.kind), rig.write(1)
        await rig.adapter.load(target, path)
        answer, before = await rig.answer("one"), await rig.adapter.observe()
        await rig.stop()
        for attempt in (
            rig.adapter.observe,
            rig.adapter.scrape,
            lambda: rig.adapter.load(target, path),
            lambda: rig.adapter.unload(target),
        ):
            with pytest.raises(EngineUnavailable):
                await attempt()
        await rig.start()
        after = await rig.adapter.observe()
        assert after.residents == ()
        if before.started_at is not None:
            assert after.started_at is not None
            assert after.started_at > before.started_at
        await rig.adapter.load(target, path)
        assert await rig.answer("one") == answer
