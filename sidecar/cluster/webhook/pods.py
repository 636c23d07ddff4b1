"""What is answered for a Pod that comes. No I/O.

Which pods come here is the configuration's: its selectors are the opt-in, so that the API server
asks about those pods alone, and a server that is down stops no others.
"""

from __future__ import annotations

from typing import Final

from sidecar.cluster.inject import (
    RECORD,
    InjectError,
    NoEngineError,
    Options,
    follow_pod,
    has_shared_store,
    inject_pod,
)
from sidecar.cluster.inject.model import CONTAINER, INJECT_LABEL
from sidecar.cluster.webhook.patch import diff
from sidecar.cluster.webhook.review import (
    BadReview,
    JsonView,
    Review,
    Verdict,
    bounded_message,
    bounded_warnings,
    problem_line,
)
from sidecar.core.desired import Problem

"""``true`` on a pod or its namespace: in; ``false`` on the pod wins over the namespace."""
INJECTED_BY: Final = "model-sidecar.io/inject"
"""Annotation that this server leaves, so that it knows its own work when it is asked again."""
WORKER_INDEX: Final = "leaderworkerset.sigs.k8s.io/worker-index"
"""Label of a LeaderWorkerSet's pods; leaders, which alone serve, have ``0``."""
GROUP_SIZE: Final = "leaderworkerset.sigs.k8s.io/size"
"""Annotation of the same pods: how many of them make one engine."""
STORE_VOLUME: Final = "model-sidecar.io/store-volume"
"""Annotation by which a pod names a volume of its own for the store."""
_BY = "webhook"
_UNSEEN_STORE = Problem(
    where="metadata.annotations",
    what="this is the leader of a LeaderWorkerSet, and its workers cannot see a store of its own",
    hint="put a claim that many nodes can mount into both templates, at one path, and name it in "
    f"the leader's by annotation {STORE_VOLUME}",
)


def review_pod(review: Review, options: Options) -> Verdict:
    """Return the patch that injects the agent, or why that cannot be.

    Asked again about its own result (reinvocation), it follows what others changed in the engine's
    container meanwhile, keeps what they changed in the agent's, and else has nothing to change. An
    agent that a pod came with stays as it is: whoever put it in said more than is known here.
    Raises ``BadReview``.
    """
    if review.kind != "Pod":
        raise BadReview(f"only pods are injected, not {review.kind}")
    labels = _of_metadata(review.object, "labels")
    if review.operation != "CREATE" or labels.get(INJECT_LABEL) == "false":
        return Verdict()
    if labels.get(WORKER_INDEX, "0") != "0":
        return Verdict()
    annotations = _of_metadata(review.object, "annotations")
    came_with_one = annotations.get(INJECTED_BY) != _BY if RECORD in annotations else _has(review)
    if came_with_one:
        return Verdict()
    try:
        return _inject(review, options)
    except NoEngineError as error:
        if labels.get(INJECT_LABEL) == "true":
            return _refuse(error)
        # All pods of a namespace come here, also those that have nothing to do with engines.
        return Verdict()
    except InjectError as error:
        return _refuse(error)


def _inject(review: Review, options: Options) -> Verdict:
    before = review.object
    annotations = _of_metadata(before, "annotations")
    inject = follow_pod if RECORD in annotations else inject_pod
    injected = inject(before, options, namespace=review.namespace)
    after = injected.pod
    if annotations.get(GROUP_SIZE, "1") != "1" and not has_shared_store(after):
        raise InjectError([_UNSEEN_STORE])
    after["metadata"]["annotations"][INJECTED_BY] = _BY
    patch = tuple(
        one
        for part in ("metadata", "spec")
        for one in diff(before.get(part), after.get(part), f"/{part}")
    )
    return Verdict(patch=patch, warnings=bounded_warnings(injected.notes) if patch else ())


def _has(review: Review) -> bool:
    """Tell whether the pod has an agent that somebody wrote into it by hand."""
    spec = review.object.get("spec")
    held = spec if isinstance(spec, dict) else {}
    return any(
        isinstance(one, dict) and one.get("name") == CONTAINER
        for part in ("containers", "initContainers")
        for one in held.get(part) or ()
    )


def _refuse(error: InjectError) -> Verdict:
    head = "the agent cannot be put into this pod"
    return Verdict(message=bounded_message(head, [problem_line(one) for one in error.problems]))


def _of_metadata(pod: JsonView, name: str) -> JsonView:
    metadata = pod.get("metadata")
    found = metadata.get(name) if isinstance(metadata, dict) else None
    return found if isinstance(found, dict) else {}
