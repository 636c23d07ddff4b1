"""What a pool gains from the agents, each as a function of the lab and of one picker.

The same function is called with a picker that reads the agents' pages and with one that reads the
engines' own, under the same configuration: a claim that fails raises ``AssertionError``.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lab import LabError
from lab.epp import Known, read_samples
from lab.picker import Entry, Picker, PickerLab, Pod, Reply, ask, wait_until
from lab.web import get
from tests.support.picker_clients import Arrivals, Load, ManyPickers, ask_many
from tests.support.vllm_lab import ACCESS

POLL_ERRORS = "llm_d_epp_datalayer_poll_errors_total"
EXTRACT_ERRORS = "llm_d_epp_datalayer_extract_errors_total"
READY = "llm_d_epp_ready_endpoints"
PICKS = "llm_d_epp_scheduler_attempts_total"
QUEUE = "llm_d_epp_per_endpoint_queue_size"
AVERAGE_KV = "llm_d_epp_average_kv_cache_utilization"
BUSY_CLIENTS = 12
"""More than an engine runs at once (8), so that it has a queue."""
SCRAPES = 30
"""Of each endpoint, after which a claim about errors is believed."""
REQUESTS = 30
SLOTS_SECONDS = 10.0
"""After which a picker that does not know the slots of pods at rest is believed not to."""
WINDOW_SECONDS = 2.0
"""What the picker knows is compared with what the engines said within it: what it reads may be two
intervals old, and figures of engines at work move with every token."""
COMMON = {"de": 1, "fr": 2, "it": 3}
"""LoRAs that every pod holds, with their seeds: more than there are slots."""
SAMPLE_LIMIT_SECONDS = 1.0
"""The agent's own limit, after which its page is a 503 (--stale-after-seconds)."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picker in front of the lab's pods, and what it reads of each."""

    lab: PickerLab
    picker: Picker
    page: Callable[[Pod], str]
    """The address of the page that this picker reads of a pod."""
    knows_slots: bool
    """It reads the agents' pages: the engines' own do not tell."""
    staleness: float
    """Seconds after which its configuration leaves out a pod that gives no page."""

    @property
    def url(self) -> str:
        """Where clients ask."""
        return self.picker.url

    def errors(self) -> dict[str, float]:
        """The error counters, which are absent before the first error."""
        return {name: self.picker.epp.total(name) for name in (POLL_ERRORS, EXTRACT_ERRORS)}


def common_entries(lab: PickerLab) -> list[Entry]:
    """The LoRAs that every pod holds."""
    return [{"name": n, "source": str(lab.lora(n, seed=s))} for n, s in COMMON.items()]


def partial_entry(lab: PickerLab, name: str, seed: int, *, here: bool) -> Entry:
    """The entry of a LoRA that some pods hold, as the document of one that does, or does not."""
    # A pod's place for a name is a hash below 1: nearly everything is not everywhere.
    share = {"percent": 99.99 if here else 0}
    return {"name": name, "source": str(lab.lora(name, seed=seed)), "rollout": share}


def place(lab: PickerLab, name: str, seed: int, holder: Pod) -> None:
    """Make one pod hold a LoRA, and the others not; wait until every engine agrees."""
    for pod in lab.pods:
        entry = partial_entry(lab, name, seed, here=pod is holder)
        pod.apply([*common_entries(lab), entry])


def fresh_name() -> str:
    """A name that no pod ever held."""
    return f"solo-{next(_numbers)}"


def _assert_all_at(pod: Pod, replies: Sequence[Reply]) -> None:
    came = Counter((reply.endpoint, reply.status) for reply in replies)
    wanted = {(pod.engine_endpoint, 200): len(replies)}
    assert came == wanted, f"answers by pod and status: {dict(came)}, not {wanted}"


def errors_stay_flat(scene: Scene) -> None:
    """No poll and no extraction fails, from the first on, and every pod is known."""
    epp = scene.picker.epp
    names = {pod.name for pod in scene.lab.pods}
    wait_until("scrapes of every pod", lambda: epp.refreshes(names) >= SCRAPES)
    assert scene.errors() == {POLL_ERRORS: 0, EXTRACT_ERRORS: 0}, str(scene.errors())
    assert epp.total(READY) == len(scene.lab.pods)


def slots_are_known_at_rest(scene: Scene) -> None:
    """With no request in flight, the picker knows as many LoRAs as there are slots."""
    wait_until("rest", lambda: all(_is_idle(known) for known in _known(scene).values()))

    def are_known() -> bool:
        return all(len(one.active) == one.max_loras == 2 for one in _known(scene).values())

    try:
        # What it knows may be from before an agent restarted.
        wait_until("slots in the picker's eyes", are_known, SLOTS_SECONDS)
    except LabError as exc:
        raise AssertionError(f"{exc}: {_known(scene)}") from exc


def figures_are_the_engines(scene: Scene) -> dict[str, Known]:
    """Queue and KV usage are what the engines say themselves, at rest and at work."""
    busy, other = scene.lab.pods
    with _busy(busy, tokens=400), Load(other.engine_url, ["fr"], 3, tokens=400):
        at_work = _wait_told(
            scene, lambda known: known[busy.name].queued > 0 < known[other.name].kv_usage
        )
    _wait_told(scene, lambda known: all(_is_idle(one) for one in known.values()))
    return at_work


def _wait_told(scene: Scene, wanted: Callable[[dict[str, Known]], object]) -> dict[str, Known]:
    """Wait for a moment at which what the picker knows is wanted, and is what the engines lately
    said; so must be what it publishes. At rest that leaves no room."""
    pods, epp = scene.lab.pods, scene.picker.epp
    recent: deque[tuple[float, list[tuple[float, float]]]] = deque()
    seen: dict[str, Known] = {}

    def look() -> bool:
        now = time.monotonic()
        recent.append((now, [_engine_figures(pod) for pod in pods]))
        while recent[0][0] < now - WINDOW_SECONDS:
            recent.popleft()
        seen.update(epp.known())
        published = {one["model_server_endpoint"]: value for one, value in epp.samples(QUEUE)}
        means = [sum(usage for _, usage in said) / len(pods) for _, said in recent]
        return (
            bool(wanted(seen))
            and all(_is_told(pod, index) for index, pod in enumerate(pods))
            and all(
                published[pod.name] in {said[index][0] for _, said in recent}
                for index, pod in enumerate(pods)
            )
            # It is rounded to percents.
            and min(means) - 0.011 < epp.total(AVERAGE_KV) < max(means) + 0.011
        )

    def _is_told(pod: Pod, index: int) -> bool:
        known, said = seen[pod.name], [said[index] for _, said in recent]
        usages = [usage for _, usage in said]
        # Its page has six figures.
        is_usage = min(usages) - 1e-5 < known.kv_usage < max(usages) + 1e-5
        return known.queued in {queued for queued, _ in said} and is_usage

    try:
        wait_until("moment at which all agree", look)
    except LabError as exc:
        raise AssertionError(f"{exc}: the engines said {list(recent)}, the picker {seen}") from exc
    return dict(seen)


def lora_of_one_pod_is_answered_there(scene: Scene) -> None:
    """Every request for a LoRA that one pod holds goes there, the first one too, and however busy
    that pod is while the other one idles."""
    name, holder = fresh_name(), scene.lab.pods[0]
    place(scene.lab, name, 11, holder)
    with _busy(holder):
        replies = ask_many(scene.url, name, REQUESTS)
    _assert_all_at(holder, replies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How a LoRA's move from one pod to another went."""

    converged_seconds: float
    """From the edit until both engines agreed."""
    followed_seconds: float
    """From the edit until the last answer that was not the new pod's."""
    lost: int
    """Requests between that no pod answered."""


def moved_lora_is_followed(scene: Scene) -> Move:
    """A LoRA moves from one pod to the other, which is the busier one: soon after both engines
    agree, every request goes there."""
    name, (old, new) = fresh_name(), scene.lab.pods
    place(scene.lab, name, 12, old)
    with _busy(new), Load(scene.url, [name], 1, tokens=4) as clients:
        wait_until("answers", lambda: len(clients.asked) >= 3)
        begun = time.monotonic()
        for pod in scene.lab.pods:
            entry = partial_entry(scene.lab, name, 12, here=pod is new)
            pod.write([*common_entries(scene.lab), entry])
        wait_until("move", lambda: _holds(new, name) is True and _holds(old, name) is False)
        converged = time.monotonic()
        # The page, and the scrape of it.
        wait_until("a scrape", lambda: time.monotonic() > converged + scene.staleness)
        replies = ask_many(scene.url, name, REQUESTS)
    _assert_all_at(new, replies)
    since = [(at, reply) for at, reply in clients.asked if at >= begun]
    astray = [at for at, reply in since if reply.endpoint != new.engine_endpoint]
    return Move(
        converged_seconds=converged - begun,
        followed_seconds=max(astray, default=begun) - begun,
        lost=sum(reply.status != 200 for _, reply in since),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """How the picker took an engine that hung and went on."""

    last_pick_seconds: float
    """From the hang until the last request that was sent to it."""
    back_seconds: float
    """From its going on until the first request that was sent to it."""
    caught: int
    """Requests that waited in it until it went on."""
    lost: int
    """Those of them that failed then: servers close connections that were idle for too long by
    their clock, also when a request has come in since."""
    requests: int


def hung_engine_is_left_out(scene: Scene, slack: float = 2.0) -> Hang:
    """The pod of an engine that hangs is left out as soon as its figures are too old, no request
    after that waits or fails, and it comes back by itself.

    ``slack`` is what a busy machine may add, in seconds.
    """
    limit = SAMPLE_LIMIT_SECONDS + scene.staleness + slack
    # The slots say which pod is chosen while nothing is wrong: fr's pod, or de's.
    slots = dict(zip([pod.name for pod in scene.lab.pods], ("fr", "de"), strict=True))
    for pod in scene.lab.pods:
        for name in ("it", slots[pod.name]):
            # One token alone would be over before vLLM's page tells that it was there.
            assert ask(pod.engine_url, name, "a slot", 16).status == 200
    if scene.knows_slots:
        wait_until(
            "slots in the picker's eyes",
            lambda: (
                {n: one.active for n, one in _known(scene).items()}
                == {n: {"it", lora} for n, lora in slots.items()}
            ),
        )
    with Arrivals(scene.url, ["fr", "de"], 5) as clients:
        # Without knowledge of the slots, one of the pods may get every request.
        wait_until("picks", lambda: max(_picks(scene, pod) for pod in scene.lab.pods) >= 10)
        hung = max(scene.lab.pods, key=lambda pod: _picks(scene, pod))
        hung.hang()
        stopped = time.monotonic()
        try:
            wait_until("end of its time", lambda: time.monotonic() > stopped + limit)
            before, others = _picks(scene, hung), _picks(scene)
            wait_until("picks after it", lambda: _picks(scene) >= others + 15)
            after = _picks(scene, hung)
            assert after == before, f"{after - before:g} of 15 requests sent to the hung pod"
            # The picker counts fresh endpoints anew every five seconds only.
            wait_until("one endpoint alone", lambda: scene.picker.epp.total(READY) == 1)
        finally:
            hung.resume()
        # The other pod took fr and de into its slots meanwhile, and nothing need go away from it:
        # what is asked for now as well has its place here.
        with Arrivals(scene.url, ["it"], 5):
            back = wait_until("picks of the pod that hung", lambda: _picks(scene, hung) > after, 60)
        wait_until("every endpoint", lambda: scene.picker.epp.total(READY) == 2)
    end = stopped + limit
    caught = [reply for at, reply in clients.asked if at < end < at + reply.seconds]
    failed = [reply for _, reply in clients.asked if reply.status != 200]
    assert all(reply in caught for reply in failed), f"failed: {failed}"
    sent = [at - stopped for at, r in clients.asked if r.endpoint == hung.engine_endpoint]
    return Hang(
        last_pick_seconds=max((at for at in sent if 0 <= at < limit), default=0.0),
        back_seconds=back,
        caught=len(caught),
        lost=len(failed),
        requests=len(clients.asked),
    )


def _picks(scene: Scene, pod: Pod | None = None) -> float:
    """How often the picker chose a pod, by its own account; any of them where none is given."""
    chosen = {"endpoint_name": pod.name} if pod else {}
    return scene.picker.epp.total(PICKS, status="success", **chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scraped:
    """How often each engine was asked for its page, a second."""

    alone: float
    crowded: float
    pickers_rate: float
    """How often the further pickers asked for each pod's page, a second."""


def many_pickers_change_nothing(scene: Scene, pickers: int = 10) -> Scraped:
    """With ten further pickers at 50 ms no engine is scraped more often than every 100 ms, no
    scrape fails, and answers are right."""
    pods, wanted = scene.lab.pods, ask_many(scene.url, "de", 1)[0].status
    assert wanted == 200
    alone = _engine_scrapes_per_second(pods)
    pages = [scene.page(pod) for pod in pods]
    with ManyPickers(pages, pickers, interval=0.05) as crowd:
        crowded = _engine_scrapes_per_second(pods)
        replies = ask_many(scene.url, "de", REQUESTS)
        rate = crowd.rate()
    assert alone > 0
    # Once an interval of 0.1 s, and a little for the edges of the time that is measured.
    assert crowded < 11, f"{crowded:.1f} scrapes a second, {alone:.1f} without the others"
    assert {reply.status for reply in replies} == {200}, str(replies)
    assert crowd.failures == [], str(crowd.failures)
    assert scene.errors() == {POLL_ERRORS: 0, EXTRACT_ERRORS: 0}, str(scene.errors())
    return Scraped(alone=alone, crowded=crowded, pickers_rate=rate / len(pods))


def _engine_scrapes_per_second(pods: Sequence[Pod], seconds: float = 5.0) -> float:
    """How often the engine that is asked most is asked for its page, by its own log."""

    def count(pod: Pod) -> int:
        text = pod.engine.log.read_text(errors="replace")
        # With a slash at the end it is the page of a few families, where vLLM offers that.
        return sum(found[2].rstrip("/") == "/metrics" for found in ACCESS.finditer(text))

    begun, before = time.monotonic(), [count(pod) for pod in pods]
    wait_until("end of a measurement", lambda: time.monotonic() > begun + seconds)
    after, elapsed = [count(pod) for pod in pods], time.monotonic() - begun
    return max(now - then for now, then in zip(after, before, strict=True)) / elapsed


def _known(scene: Scene) -> dict[str, Known]:
    return scene.picker.epp.known()


def _is_idle(known: Known) -> bool:
    return known.queued == 0 and known.running == 0


@contextmanager
def _busy(pod: Pod, tokens: int = 100) -> Iterator[None]:
    """Keep an engine busy, with a queue, by requests that no picker sees.

    All are for one LoRA: with more of them than slots, vLLM lets the others wait for as long as
    those in the slots have requests, and a request for another LoRA would not be answered at all.
    """
    for name in COMMON:
        # The last ones asked are in the slots when it begins.
        assert ask(pod.engine_url, name, "a slot", 1).status == 200
    with Load(pod.engine_url, [name], BUSY_CLIENTS, tokens=tokens):
        wait_until(f"queue of {pod.name}", lambda: _engine_figures(pod)[0] > 0)
        yield


def _engine_figures(pod: Pod) -> tuple[float, float]:
    """Queue and KV usage, of the engine's own page."""
    page = get(pod.engine.metrics_url).text
    return _total(page, "vllm:num_requests_waiting"), _total(page, "vllm:kv_cache_usage_perc")


def _total(page: str, name: str) -> float:
    return sum(value for _, value in read_samples(page, name))


def _holds(pod: Pod, name: str) -> bool | None:
    """Tell whether a pod holds a LoRA; None while it is not converged."""
    status = pod.status()
    is_resident = status["targets"].get(name, {}).get("state") == "resident"
    return is_resident if status["converged"] else None
