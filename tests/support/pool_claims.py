"""What a pool promises to clients and to its pickers, each claim a function that can fail.

A claim that does not hold raises ``AssertionError``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from lab.picker import Entry, Picker, PickerLab, Pod, wait_until
from lab.web import get
from sidecar.core.documents.resolve import Pod as Identity
from sidecar.core.documents.resolve import is_in_share
from tests.support.picker_claims import READY
from tests.support.picker_oracle import parse, scalar
from tests.support.pool_place import Watch, complete, endpoints, fresh_prompt

SEEN_SECONDS = 15.0
"""Within which a picker has to act by what was written on the API server: 0.1 s at rest."""
PROBE_SECONDS = 2.0 * 3
"""Of the manifest: a probe every 2 s, and 3 failures in a row."""
LOOK_SECONDS = 0.1
"""Between two looks or requests of a loop."""


def clear(pod: Pod) -> None:
    """Make a pod hold no LoRA, and wait until it is ready."""
    # An agent that has just started has not read its document yet.
    wait_until("document", lambda: pod.status()["document"]["generation"])
    if pod.status()["targets"]:
        pod.apply([])
    wait_until("readiness", pod.is_ready)


def await_endpoints(picker: Picker, *pods: Pod, deadline: float = SEEN_SECONDS) -> float:
    """Wait until these pods are the endpoints of a picker, read at least once."""
    names = {pod.name for pod in pods}

    def are_known() -> bool:
        fresh = picker.epp.total(READY)
        return endpoints(picker) == names and fresh == len(names)

    return wait_until(f"endpoints {names}", are_known, deadline)


def lora(lab: PickerLab, name: str, *, seed: int, **more: object) -> dict[str, object]:
    """An entry of a document, its LoRA written."""
    return {"name": name, "source": str(lab.lora(name, seed=seed)), **more}


def claim_no_endpoint_before_ready(
    picker: Picker, pod: Pod, make_ready: Callable[[], object]
) -> float:
    """A pod whose agent says no is no endpoint, and is one when it says yes; seconds that took."""
    end = time.monotonic() + PROBE_SECONDS
    while time.monotonic() < end:
        assert not pod.is_ready()
        assert pod.name not in endpoints(picker), f"{pod.name} is an endpoint, and not ready"
        time.sleep(LOOK_SECONDS)
    make_ready()
    wait_until("readiness", pod.is_ready)
    deadline = PROBE_SECONDS + SEEN_SECONDS
    return wait_until("endpoint", lambda: pod.name in endpoints(picker), deadline)


def claim_answered_by(url: str, pod: Pod, name: str, *, requests: int = 16) -> None:
    """Every request for a LoRA is answered by the pod that holds it, the first one too."""
    for number in range(1, requests + 1):
        said = complete(url, name)
        assert said.endpoint == pod.engine_endpoint, f"request {number} went astray: {said}"
        assert said.status == 200, said


def await_listed(pod: Pod, name: str) -> None:
    """Wait until pickers have had the time to read of a LoRA: two of their intervals."""
    wait_until("page", lambda: name in get(f"{pod.agent_url}/metrics").text, SEEN_SECONDS)
    end = time.monotonic() + 0.2
    wait_until("next scrape", lambda: time.monotonic() > end)


def figures(pod: Pod) -> tuple[float, float]:
    """How many requests wait in the engine, and its KV usage, in its own words."""
    page = parse(get(pod.engine.metrics_url).body)
    queue, usage = (
        scalar(page, name) for name in ("vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    )
    assert queue is not None
    assert usage is not None
    return queue, usage


def claim_no_endpoint(picker: Picker, pod: Pod, deadline: float) -> float:
    """A pod is no endpoint after this time at the latest; the seconds that it took."""
    begun = time.monotonic()
    while pod.name in endpoints(picker):
        waited = time.monotonic() - begun
        assert waited < deadline, f"{pod.name} is still an endpoint after {waited:.1f} s"
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - begun


def claim_stays_ready(pod: Pod, watch: Watch) -> None:
    """For as long as three probes take, the pod is ready, and has never been away."""
    end = time.monotonic() + PROBE_SECONDS
    while time.monotonic() < end:
        assert pod.is_ready(), f"{pod.name} is not ready"
        time.sleep(LOOK_SECONDS)
    assert all(pod.name in seen for seen in watch.seen), f"{pod.name} was no endpoint for a while"


def edit(pod: Pod, entries: list[Entry]) -> None:
    """Write a document, and wait until the agent has read it."""
    before = pod.status()["document"]["generation"]
    pod.write(entries)
    wait_until("generation", lambda: pod.status()["document"]["generation"] > before)


def claim_split(url: str, name: str, holders: dict[str, Pod]) -> Counter[str]:
    """Each answer is that of a LoRA of the split, from the pod that holds it, and has the name that
    was asked for; how often each LoRA answered."""
    lora_at = {pod.engine_endpoint: lora for lora, pod in holders.items()}
    answers: Counter[str] = Counter()
    for _ in range(40):
        prompt = fresh_prompt()
        said = complete(url, name, prompt)
        # A pod answers 404 to the name of a LoRA that it does not hold.
        assert said.status == 200, f"an answer of a split failed: {said}"
        assert said.model == name
        lora = lora_at[said.endpoint]
        answers[lora] += 1
        if answers[lora] == 1:
            assert said.text == complete(holders[lora].engine_url, lora, prompt).text
            assert said.text != complete(holders[lora].engine_url, "base", prompt).text
    return answers


def await_rewrite(url: str, name: str) -> None:
    """Wait until a picker rewrites a name: an engine no longer says that it does not know it."""
    wait_until("rewrite", lambda: name not in complete(url, name).text)


def share(name: str, pods: tuple[Pod, ...]) -> list[Pod]:
    """The pods that a rollout of half of the pods gives this name to."""
    return [pod for pod in pods if is_in_share(name, Identity(name=pod.name, uid=pod.name), 50)]
