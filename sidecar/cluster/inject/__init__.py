"""The agent's way into pods: decisions on plain objects. No I/O, no clock, no API server.

``inject_pod`` and ``remove_pod`` take a Pod or a pod template, ``inject_stream`` and
``remove_stream`` the text of manifests.
"""

from sidecar.cluster.inject.model import RECORD, Injected, InjectError, NoEngineError, Options
from sidecar.cluster.inject.pod import follow_pod, inject_pod
from sidecar.cluster.inject.removal import remove_pod
from sidecar.cluster.inject.store import has_shared_store
from sidecar.cluster.inject.stream import inject_stream, remove_stream

__all__ = [
    "RECORD",
    "InjectError",
    "Injected",
    "NoEngineError",
    "Options",
    "follow_pod",
    "has_shared_store",
    "inject_pod",
    "inject_stream",
    "remove_pod",
    "remove_stream",
]
