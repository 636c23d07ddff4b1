"""Pod Security levels, as far as injection could lower one.

Source: Kubernetes, "Pod Security Standards". All that is added complies with `restricted` but for a
user that is asked for: root would lower a pod of that level.
"""

from __future__ import annotations

from sidecar.cluster.inject.model import PREFIX, Json, mapping, objects, refusal


def check_level(pod: Json, user: int | None) -> None:
    """Raise ``InjectError`` when the agent as this user would lower the pod's level."""
    if user == 0 and is_non_root(mapping(pod.get("spec"), "spec")):
        raise refusal(
            f"metadata.annotations[{PREFIX}run-as-user]",
            "root, where every container of the pod runs as another user",
            "name another user, or leave it out",
        )


def is_non_root(spec: Json) -> bool:
    """Tell whether every container is bound not to run as root."""
    whole = mapping(spec.get("securityContext"), "spec.securityContext")
    for part in ("containers", "initContainers"):
        for index, one in enumerate(objects(spec.get(part), f"spec.{part}")):
            where = f"spec.{part}[{index}].securityContext"
            own = mapping(one.get("securityContext"), where)
            if not own.get("runAsNonRoot", whole.get("runAsNonRoot")):
                return False
    return True
