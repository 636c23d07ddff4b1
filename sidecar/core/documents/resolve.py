"""What one entry means for one pod: shares, canaries, and the habits of its format."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.desired import DropOut, Entry, Format, Readiness
from sidecar.core.documents.michelangelo import CANARY, SERVING
from sidecar.core.documents.parsed import ParsedEntry, Placement
from sidecar.core.places import place_of

_GRACE_SECONDS = {Format.MICHELANGELO: 150.0}
"""Between leaving the document and the unload; 0 in every other format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """Who we are, for entries that are not for every pod."""

    name: str
    uid: str = ""

    @property
    def identity(self) -> str:
        """What tells this pod from every other one: its UID, or its name where that is unknown."""
        return self.uid or self.name


def is_in_share(name: str, pod: Pod, percent: float) -> bool:
    """Tell whether this pod is in a share of ``percent`` (0 to 100).

    The pod keeps its place for one name, so that a growing percent only adds pods.
    """
    return place_of(name, pod.identity) * 100 < percent


def drop_out(form: Format) -> DropOut:
    """Return what it means in a format that a name is no longer listed."""
    return DropOut.KEEP if form is Format.LORA_SYNCER else DropOut.UNLOAD


def resolve(
    parsed: ParsedEntry,
    form: Format,
    pod: Pod,
    *,
    previous: Entry | None = None,
    default_warmup: bool = False,
    unload_grace_seconds: float | None = None,
) -> Entry | None:
    """Return what this pod shall hold of an entry; None where it is for other pods only.

    ``previous`` is what it held under that name: of several sources that the document gives to
    one name, the one that is already held stays. ``default_warmup`` is for entries that do not
    say ``warmup``; without ``unload_grace_seconds`` the format's own holds.
    """
    source, digest, readiness, where = parsed.source, parsed.digest, parsed.readiness, parsed.where
    everywhere = True
    if parsed.placements:
        here = [place for place in parsed.placements if _applies(place, pod)]
        if not here:
            return None
        held = [place for place in here if previous and place.source == previous.source]
        chosen = (held or here)[0]
        source, where = chosen.source, chosen.where
        readiness = _readiness(here)
        everywhere = any(place.phase != CANARY for place in parsed.placements)
    elif parsed.rollout is not None:
        share = parsed.rollout
        everywhere = share.percent >= 100 or share.otherwise is not None
        if not is_in_share(parsed.name, pod, share.percent):
            if share.otherwise is None:
                return None
            # The pin is of the other artifact.
            source, digest = share.otherwise, None
    grace = unload_grace_seconds
    return Entry(
        name=parsed.name,
        source=source,
        format=form,
        where=where,
        kind=parsed.kind,
        digest=digest,
        base_model=parsed.base_model,
        readiness=readiness,
        warmup=default_warmup if parsed.warmup is None else parsed.warmup,
        pinned=parsed.pinned,
        credentials=parsed.credentials,
        refresh_seconds=parsed.refresh_seconds,
        parameters=parsed.parameters,
        passthrough=parsed.passthrough,
        drop_out=drop_out(form),
        unload_grace_seconds=_GRACE_SECONDS.get(form, 0.0) if grace is None else grace,
        everywhere=everywhere,
    )


def _applies(place: Placement, pod: Pod) -> bool:
    return place.phase != CANARY or place.canary_pod == pod.name


def _readiness(places: list[Placement]) -> Readiness:
    phases = {place.phase for place in places}
    if SERVING in phases:
        return Readiness.REQUIRED
    # Without phases nothing was staged before: a new model must not unready a pod.
    return Readiness.INITIAL if "" in phases else Readiness.OPTIONAL
