"""The picker in a cluster: an InferencePool on a real API server, and pods that a kubelet probes.

Real EPP, Envoy, API server and engines; only the kubelet is played (``lab/kubelet.py``). Where a
claim would be lost without us, it is a function, and a second run of it, with what we add taken
away, has to fail.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from lab.picker import WAIT_SECONDS, Entry, Picker, PickerLab, wait_until
from lab.picker_config import staleness_seconds
from lab.web import stream_events
from tests.support.picker_claims import (
    AVERAGE_KV,
    QUEUE,
    Scene,
    lora_of_one_pod_is_answered_there,
    moved_lora_is_followed,
)
from tests.support.picker_clients import Load
from tests.support.pool_claims import (
    LOOK_SECONDS,
    PROBE_SECONDS,
    SEEN_SECONDS,
    await_endpoints,
    await_listed,
    await_rewrite,
    claim_answered_by,
    claim_no_endpoint,
    claim_no_endpoint_before_ready,
    claim_split,
    claim_stays_ready,
    clear,
    edit,
    figures,
    lora,
    share,
)
from tests.support.pool_place import (
    AGENT,
    CONFIG,
    ENGINE,
    PoolPlace,
    Watch,
    complete,
    crd_files,
    endpoints,
    extract_errors,
    poll_errors,
    renew,
)

pytestmark = [pytest.mark.kube, pytest.mark.epp, pytest.mark.crds, pytest.mark.vllm]

NUMBERS = count(1)
BLIND_SECONDS = 2.0
"""After which a picker that does not learn of a condition is believed not to."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two pods, each a real vLLM and its agent; few KV blocks, so that their usage is seen."""
    work = tmp_path_factory.mktemp("lab")
    flags = ["--lora-labels=registered"]
    engine_args = ["--num-gpu-blocks-override=48"]
    with PickerLab(work, engine_args=engine_args, agent_flags=flags) as lab:
        yield lab


@pytest.fixture(scope="module")
def served(cluster):
    """The API server, with the objects of a pool."""
    cluster.install_crds(*crd_files())
    return cluster


@pytest.fixture(scope="module")
def place(served, lab):
    """A pool of both pods, as our manifests have it."""
    place = PoolPlace(served, "pool", lab)
    try:
        for pod in lab.pods:
            place.add(pod)
        yield place
    finally:
        place.stop()


@pytest.fixture
def make_place(served, lab):
    """Make further pools of the same processes, their pods to be added yet."""
    places: list[PoolPlace] = []

    def make(name: str) -> PoolPlace:
        places.append(PoolPlace(served, f"{name}-{next(NUMBERS)}", lab))
        return places[-1]

    yield make
    for place in places:
        place.stop()


@pytest.fixture
def report(capsys):
    """Write a figure below the test's name."""

    def write(what: str, figure: object) -> None:
        with capsys.disabled():
            print(f"\n  {what}: {figure}")

    return write


@pytest.fixture
def pods(lab, place):
    """Both pods, Ready, their engines holding no LoRA."""
    for pod in lab.pods:
        clear(pod)
        place.kubelet.wait_ready(pod.name, WAIT_SECONDS)
    return lab.pods


@pytest.fixture
def start():
    """Start pickers that end with the test: ``start(place, name, port=...)``."""
    pickers: list[Picker] = []

    def begin(place: PoolPlace, name: str = "picker", **more) -> Picker:
        pickers.append(place.picker(f"{name}-{next(NUMBERS)}", **more))
        return pickers[-1]

    yield begin
    for picker in pickers:
        picker.stop()


@pytest.fixture
def picker(start, place, pods):
    """A fresh picker that knows both pods."""
    picker = start(place)
    await_endpoints(picker, *pods)
    return picker


@pytest.fixture
def bare(start, lab, place, pods):
    """The same picker, reading the engines' own pages."""
    picker = start(place, "bare", port=lab.ports.engine)
    await_endpoints(picker, *pods)
    return picker


@pytest.fixture
def scene(start, place, lab, pods):
    """Start a picker for the claims that file discovery makes as well."""

    def begin(*, direct: bool = False) -> Scene:
        port = lab.ports.engine if direct else lab.ports.agent
        picker = start(place, port=port)
        await_endpoints(picker, *pods)
        return Scene(
            lab=lab,
            picker=picker,
            page=lambda pod: f"http://{pod.address}:{port}/metrics",
            knows_slots=not direct,
            staleness=staleness_seconds(CONFIG),
        )

    return begin


def test_a_pod_is_an_endpoint_when_it_is_ready_and_no_scrape_ever_fails(
    lab, place, make_place, start, pods, report
):
    fresh, other = pods
    place.remove(fresh)
    missing = {"name": "needed", "source": str(lab.work / "not-there"), "readiness": "required"}
    renew(fresh, [missing])
    good = lora(lab, "needed", seed=11, readiness="required")
    # Without the probe of the agent, the engine's own decides, and the engine is fine.
    unprobed = make_place("unprobed")
    unprobed.add(fresh, unprobed=[AGENT])
    blind, picker = start(unprobed), start(place)
    wait_until("endpoint", lambda: fresh.name in endpoints(blind), SEEN_SECONDS)
    with pytest.raises(AssertionError, match="is an endpoint, and not ready"):
        claim_no_endpoint_before_ready(blind, fresh, lambda: None)

    place.add(fresh)
    took = claim_no_endpoint_before_ready(picker, fresh, lambda: fresh.apply([good]))
    report("seconds from /ready to an endpoint", took)
    await_endpoints(picker, fresh, other)
    assert (poll_errors(picker), extract_errors(picker)) == (0, 0)


def test_a_lora_of_one_pod_is_answered_there_from_its_first_request_on(scene):
    lora_of_one_pod_is_answered_there(scene())
    with pytest.raises(AssertionError, match="404"):
        lora_of_one_pod_is_answered_there(scene(direct=True))


def test_a_lora_that_moves_is_followed(scene, report):
    report("move", moved_lora_is_followed(scene()))


def test_the_pickers_queue_and_kv_usage_are_the_engines(pods, picker):
    busy, idle = pods
    endpoint = f"{busy.name}-rank-0"
    with Load(busy.engine_url, ["base"], 14, tokens=400):

        def has_the_queue():
            before = figures(busy)[0]
            seen = picker.epp.total(QUEUE, model_server_endpoint=endpoint)
            return seen > 0 and before == seen == figures(busy)[0]

        def has_the_usage():
            # The average of both pods, rounded, and a little old: usage moves with every token.
            average = picker.epp.total(AVERAGE_KV)
            return average > 0.1 and abs(average - figures(busy)[1] / 2) < 0.03

        wait_until("same queue", has_the_queue)
        wait_until("same KV usage", has_the_usage)
        assert figures(idle) == (0.0, 0.0)
    wait_until("rest", lambda: picker.epp.total(QUEUE) == picker.epp.total(AVERAGE_KV) == 0)
    assert extract_errors(picker) == 0


def test_a_hung_engine_leaves_the_pool_and_comes_back_by_itself(make_place, start, pods, report):
    hung, other = pods
    # Of the agent alone: the engine's own probe sees a hang, too, and would hide what ours sees.
    probed, unprobed = make_place("probed"), make_place("unprobed")
    for pod in pods:
        probed.add(pod, unprobed=[ENGINE])
        unprobed.add(pod, unprobed=[AGENT, ENGINE])
    picker, blind = start(probed), start(unprobed)
    for one in (picker, blind):
        await_endpoints(one, *pods)
    try:
        hung.hang()
        report("seconds from the hang to 503", wait_until("503", lambda: not hung.is_ready()))
        gone = claim_no_endpoint(picker, hung, PROBE_SECONDS + SEEN_SECONDS)
        report("seconds from 503 to no endpoint", gone)
        claim_answered_by(picker.url, other, "base", requests=8)
        with pytest.raises(AssertionError, match="is still an endpoint"):
            claim_no_endpoint(blind, hung, BLIND_SECONDS)
    finally:
        hung.resume()
    report("seconds from going on to 200", wait_until("200", hung.is_ready))
    back = await_endpoints(picker, *pods)
    report("seconds from 200 to an endpoint", back)
    wait_until(
        "answer of it", lambda: complete(picker.url, "base").endpoint == hung.engine_endpoint
    )


def test_an_agent_restart_is_seen_by_no_probe_and_loses_no_endpoint(
    lab, place, pods, picker, report
):
    pod, _ = pods
    broken: Entry = {"name": "broken", "source": str(lab.work / "nowhere"), "readiness": "required"}
    # The pod was ready before this entry came, which may not unready it, nor may it later on.
    entries: list[Entry] = [lora(lab, "kept", seed=41), broken]
    edit(pod, entries)
    wait_until("LoRA", lambda: pod.status()["targets"]["kept"]["state"] == "resident")
    changes = len(place.kubelet.changes)
    await_listed(pod, "kept")
    with Watch(picker) as watch, Load(picker.url, ["kept"], 1, tokens=4) as clients:
        begun = time.monotonic()
        pod.agent.kill()
        pod.start_agent()
        wait_until("readiness", pod.is_ready, PROBE_SECONDS)
        report("seconds without /ready", time.monotonic() - begun)
        claim_stays_ready(pod, watch)
    # Without a page a pod is left out, and the other one does not know this LoRA.
    lost = [at for at, reply in clients.asked if reply.status != 200]
    report("requests lost for a LoRA of this pod alone", f"{len(lost)} of {len(clients.asked)}")
    assert max(lost, default=begun) - begun < PROBE_SECONDS
    assert place.kubelet.changes[changes:] == []
    # The counter that is 0 elsewhere does count.
    assert poll_errors(picker) > 0
    # Without what the agent remembers, the entry would gate.
    with Watch(picker) as watch:
        renew(pod, entries)
        with pytest.raises(AssertionError, match="is not ready"):
            claim_stays_ready(pod, watch)


def test_a_crashed_agent_costs_no_request_and_its_pod_is_back_by_itself(
    place, pods, picker, report
):
    pod, other = pods
    changes = len(place.kubelet.changes)
    with ThreadPoolExecutor(max_workers=1) as threads:
        restart = threads.submit(place.restart_agent, pod)
        # A container that does not run makes its Pod NotReady, whatever we do.
        wait_until("NotReady", lambda: not place.kubelet.is_ready(pod.name))
        claim_no_endpoint(picker, pod, SEEN_SECONDS)
        while not restart.done():
            said = complete(picker.url, "base")
            assert (said.status, said.endpoint) == (200, other.engine_endpoint)
            # Without a rest these requests would take the core that the agent starts on.
            time.sleep(LOOK_SECONDS)
        restart.result()
    place.kubelet.wait_ready(pod.name, WAIT_SECONDS)
    await_endpoints(picker, *pods)
    away, back = place.kubelet.changes[changes:]
    report("seconds without the pod", back.at - away.at)


def test_a_split_over_two_loras_finds_the_pods_that_hold_them(lab, place, pods, picker, bare):
    first, second = pods
    first.apply([lora(lab, "blue", seed=51)])
    second.apply([lora(lab, "green", seed=52)])
    await_listed(first, "blue")
    await_listed(second, "green")
    place.rewrite("assistant", {"blue": 3, "green": 1})
    for one in (picker, bare):
        await_rewrite(one.url, "assistant")
    with pytest.raises(AssertionError, match="an answer of a split failed"):
        claim_split(bare.url, "assistant", {"blue": first, "green": second})

    answers = claim_split(picker.url, "assistant", {"blue": first, "green": second})
    # 40 tosses at 3 to 1 are none of the one, or too few of the other, once in 100,000 runs.
    assert answers["green"] > 0
    assert answers["blue"] > 15
    payload = {"model": "assistant", "prompt": "hello", "max_tokens": 4, "stream": True}
    events = list(stream_events(f"{picker.url}/v1/completions", payload))
    assert {event["model"] for event in events} == {"assistant"}
    assert extract_errors(picker) == 0


def test_a_rollout_to_half_of_the_pods_is_answered_by_that_half(lab, pods, picker, bare):
    name = next(name for name in map("half-{}".format, count()) if len(share(name, pods)) == 1)
    ((holder,),) = [share(name, pods)]
    entry = lora(lab, name, seed=61)
    for pod in pods:
        pod.apply([entry | {"rollout": {"percent": 50}}])
    await_listed(holder, name)
    with pytest.raises(AssertionError, match="went astray"):
        claim_answered_by(bare.url, holder, name)
    claim_answered_by(picker.url, holder, name)

    for pod in pods:
        pod.apply([entry | {"rollout": {"percent": 100}}])
        await_listed(pod, name)
    with ThreadPoolExecutor(max_workers=12) as threads:
        answers = list(threads.map(lambda _: complete(picker.url, name), range(36)))
    assert {said.status for said in answers} == {200}
    assert {said.endpoint for said in answers} == {pod.engine_endpoint for pod in pods}
    assert extract_errors(picker) == 0
