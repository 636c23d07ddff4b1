"""The picker in the loop: the real EPP, Envoy and two real vLLM, each with its agent.

Every claim is a function of the lab (``tests/support/picker_claims.py``). It holds where the picker
reads the agents' pages, under a configuration that we ship; where it is the agents' doing, it fails
under the same configuration with the engines' own pages, which is shown, too. Where the engines'
own pages would do as well, the test says so, and shows what is different instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest

from lab.epp import VERBOSE
from lab.picker import PickerLab, Pod, wait_until
from lab.picker_config import lab_config, staleness_seconds
from lab.vllm import complete, stream
from tests.support.picker_claims import (
    POLL_ERRORS,
    Scene,
    common_entries,
    errors_stay_flat,
    figures_are_the_engines,
    hung_engine_is_left_out,
    lora_of_one_pod_is_answered_there,
    many_pickers_change_nothing,
    moved_lora_is_followed,
    slots_are_known_at_rest,
)

pytestmark = [pytest.mark.vllm, pytest.mark.epp]

Report = Callable[[str, object], None]
OpenScene = Callable[..., AbstractContextManager[Scene]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PickerLab]:
    """Two pods for all tests; few KV blocks, so that usage is seen."""
    work = tmp_path_factory.mktemp("pool")
    with PickerLab(work, engine_args=["--num-gpu-blocks-override=48"]) as lab:
        for pod in lab.pods:
            pod.apply(common_entries(lab))
        yield lab


@pytest.fixture
def pool(lab: PickerLab) -> PickerLab:
    """The pods, each holding the common LoRAs alone."""
    entries = common_entries(lab)
    for pod in lab.pods:
        wait_until(f"convergence of {pod.name}", partial(_is_settled, pod))
        if set(pod.status()["targets"]) != {str(one["name"]) for one in entries}:
            pod.apply(entries)
    return lab


def _is_settled(pod: Pod) -> bool:
    status = pod.status()
    # An agent that has just started has not read its document yet.
    return bool(status["document"]["generation"]) and bool(status["converged"])


@pytest.fixture
def open_scene(pool: PickerLab, request: pytest.FixtureRequest) -> OpenScene:
    """Start a picker with a shipped configuration, that reads the agents' pages or, ``direct``,
    the engines' own."""

    numbers = itertools.count()

    @contextmanager
    def scene(
        config: str = "default", *, direct: bool = False, without: str | None = None
    ) -> Iterator[Scene]:
        kind = "direct" if direct else "through"
        name = f"{request.node.name}-{kind}-{next(numbers)}"
        port = pool.ports.engine if direct else pool.ports.agent
        text = lab_config(config, port=port, endpoints=pool.endpoints, without=without)

        def page(pod: Pod) -> str:
            return f"http://{pod.address}:{port}/metrics"

        picker = pool.picker(name.replace("/", "-"), text, verbosity=VERBOSE)
        try:
            yield Scene(
                lab=pool,
                picker=picker,
                page=page,
                knows_slots=not direct,
                staleness=staleness_seconds(config),
            )
        finally:
            picker.stop()

    return scene


@pytest.fixture
def report(record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]):
    """Write a figure beside the test's name."""

    def write(what: str, figure: object) -> None:
        record_property(what, figure)
        with capsys.disabled():
            print(f"\n  {what}: {figure}")

    return write


def test_a_client_is_answered_through_the_gateway_as_by_an_engine(open_scene, pool):
    with open_scene() as scene:
        for lora in ("de", "fr"):
            wanted = complete(pool.pods[0].engine_url, lora)
            assert complete(scene.url, lora) == wanted
            pieces = list(stream(scene.url, lora, max_tokens=16))
            assert len(pieces) > 1
            assert "".join(pieces) == wanted


def test_no_scrape_fails_from_the_first_on(open_scene):
    with open_scene() as scene:
        errors_stay_flat(scene)
    # The engines' pages are read without an error, too: the difference is what can be read there.
    with open_scene(direct=True) as scene:
        errors_stay_flat(scene)


def test_the_picker_knows_the_slots_of_pods_at_rest(open_scene):
    with open_scene() as scene:
        slots_are_known_at_rest(scene)
    with open_scene(direct=True) as scene, pytest.raises(AssertionError, match=r"active=frozenset"):
        slots_are_known_at_rest(scene)


def test_an_agent_that_restarts_costs_some_polls_and_no_extraction(open_scene, pool, report):
    with open_scene() as scene:
        errors_stay_flat(scene)
        pod = pool.pods[0]
        pod.agent.stop()
        pod.start_agent()
        after = scene.errors()
        slots_are_known_at_rest(scene)
        report("polls lost while an agent restarted", scene.errors()[POLL_ERRORS])
        assert scene.errors() == after | {POLL_ERRORS: scene.errors()[POLL_ERRORS]}


def test_queue_and_kv_usage_are_those_of_the_engines(open_scene, report):
    with open_scene() as scene:
        report("read at work", figures_are_the_engines(scene))
    # The engines' pages say the same: what differs is who pays for many readers (below).
    with open_scene(direct=True) as scene:
        figures_are_the_engines(scene)


# The last one is the default, with which the agents go on.
@pytest.mark.parametrize("labels", ["registered", "auto"])
def test_a_lora_of_one_pod_is_answered_there_from_its_first_request_on(open_scene, pool, labels):
    for pod in pool.pods:
        pod.agent.stop()
        pod.start_agent(f"--lora-labels={labels}")
        wait_until(f"readiness of {pod.name}", pod.is_ready)
    with open_scene() as scene:
        lora_of_one_pod_is_answered_there(scene)
    with (
        open_scene(direct=True) as direct,
        pytest.raises(AssertionError, match="404"),
    ):
        lora_of_one_pod_is_answered_there(direct)


def test_a_lora_that_moves_is_followed(open_scene, report):
    with open_scene() as scene:
        report("move", moved_lora_is_followed(scene))
    with (
        open_scene(direct=True) as direct,
        pytest.raises(AssertionError, match="404"),
    ):
        moved_lora_is_followed(direct)


def test_a_hung_engine_is_left_out_and_comes_back(open_scene, report):
    with open_scene() as scene:
        report("hang", hung_engine_is_left_out(scene))
    # A hung engine gives no page of its own either, and the filter of the configuration sees it:
    # with it, the agent adds the readiness that Kubernetes acts on.
    with open_scene(direct=True) as direct:
        report("hang, engines' own pages", hung_engine_is_left_out(direct))


def test_without_the_filter_a_hung_engine_keeps_its_requests(open_scene):
    # Its LoRAs are in no other slot, which weighs more here than all that is wrong with it.
    with open_scene() as scene:
        hung_engine_is_left_out(scene)
    with (
        open_scene(without="utilization-detector") as scene,
        pytest.raises(AssertionError, match="sent to the hung pod"),
    ):
        hung_engine_is_left_out(scene)


def test_ten_more_pickers_cost_the_engines_nothing(open_scene, report):
    with open_scene() as scene:
        report("scrapes a second", many_pickers_change_nothing(scene))
    with open_scene(direct=True) as direct, pytest.raises(AssertionError, match="a second"):
        many_pickers_change_nothing(direct)
