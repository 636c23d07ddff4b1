"""Manifests: which one of an index is meant, and what the layers of one are.

Two shapes are read. An *artifact* has files for layers, named by an annotation, or archives that
hold files (ORAS, CNCF ModelPack, KitOps, Docker models). A container *image* has layers that are
applied one over the other, and the files that count are below ``/models`` (a KServe modelcar).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sidecar.artifacts.archive import packing_of
from sidecar.artifacts.listing import ADAPTER_CONFIG, MODEL_CONFIG, is_version
from sidecar.artifacts.remote.port import Blob, Contents, Packing
from sidecar.errors import InvalidArtifact, UnsupportedSource

ACCEPTED = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.artifact.manifest.v1+json",
)
MODEL_DIRECTORY = "models"
"""Of an image, the directory whose content is the artifact: KServe's modelcar layout."""

_IMAGE_CONFIGS = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_EMPTY_CONFIG = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""The digest of ``{}``: a config that says nothing, as artifacts have it under any media type."""
_EMPTY_LAYER = "application/vnd.oci.empty.v1+json"
_FILE_OR_TAR = "application/vnd.oci.image.layer.v1.tar"
"""A layer of an image, and what ORAS calls every file that nobody gave a type."""
_TAR_TYPE = re.compile(r"(?:.*[./+-])?tar(?:[+.](?P<compression>gzip|gz|zstd|zst))?")
_NAMES = ("org.cncf.model.filepath", "org.opencontainers.image.title")
_UNPACK = "io.deis.oras.content.unpack"
_ATTACHED = "vnd.docker.reference.type"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One entry of ``layers``."""

    media_type: str
    digest: str
    """64 hex digits of its sha256."""
    size: int
    name: str
    """The path of a file; empty where nothing names it."""
    is_directory: bool
    """ORAS packed a directory into it."""


def parse_manifest(text: bytes, where: str) -> Mapping[str, Any]:
    """Return a manifest or an index as JSON says it. Raises ``InvalidArtifact``."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidArtifact(f"{where}: what the registry has under this name is no manifest")
    if "manifests" in found and ("layers" in found or "config" in found):
        # CVE-2021-41190: one document that two readers take for two different things.
        raise InvalidArtifact(f"{where}: a manifest that is an index as well is not read")
    return found


def choose_manifest(index: Mapping[str, Any], architecture: str, where: str) -> str | None:
    """Return the digest of the manifest that an index means for this machine.

    That is the first for linux and ``architecture`` (as Go names it), else the only one there is,
    else linux/amd64: the files of a model seldom depend on the machine. Attestations do not count.
    None when the document is no index. Raises ``InvalidArtifact``.
    """
    if "manifests" not in index:
        return None
    found: list[tuple[str, str]] = []
    for one in _objects(index["manifests"], where):
        platform = one.get("platform")
        platform = platform if isinstance(platform, dict) else {}
        annotations = one.get("annotations")
        is_attached = isinstance(annotations, dict) and _ATTACHED in annotations
        name = f"{platform.get('os', '')}/{platform.get('architecture', '')}"
        if not is_attached and name != "unknown/unknown":
            found.append((name, f"sha256:{_digest(one, where)}"))
    for wanted in (f"linux/{architecture}", None, "linux/amd64"):
        matching = [digest for name, digest in found if wanted in {None, name}]
        if matching and (wanted is not None or len(matching) == 1):
            return matching[0]
    raise InvalidArtifact(
        f"{where}: the index has no manifest for linux/{architecture} or linux/amd64 "
        f"({', '.join(name for name, _ in found[:5]) or 'it is empty'})"
    )


def read_contents(manifest: Mapping[str, Any], signature: str, where: str) -> Contents:
    """Return what a manifest names. Raises ``InvalidArtifact`` and ``UnsupportedSource``."""
    listed = manifest.get("layers", manifest.get("blobs"))
    if listed is None:
        raise UnsupportedSource(
            f"{where}: the manifest has no layers (schema version "
            f"{str(manifest.get('schemaVersion'))[:20]}); push it with a current tool"
        )
    layers = [_layer(one, where) for one in _objects(listed, where)]
    if _is_image(manifest):
        blobs = [blob for one in layers if (blob := _image_blob(one, where)) is not None]
        directory = MODEL_DIRECTORY
    else:
        blobs = [blob for one in layers if (blob := _artifact_blob(one, where)) is not None]
        # Builders repeat what belongs to two groups of files.
        blobs, directory = _stripped(_unpacked_alone(list(dict.fromkeys(blobs)))), ""
    if not blobs:
        raise InvalidArtifact(f"{where}: the manifest names no files")
    return Contents(blobs=tuple(blobs), signature=signature, image_directory=directory)


def _is_image(manifest: Mapping[str, Any]) -> bool:
    config = manifest.get("config")
    return (
        isinstance(config, dict)
        and config.get("mediaType") in _IMAGE_CONFIGS
        and config.get("digest") != _EMPTY_CONFIG
        and not manifest.get("artifactType")
    )


def _image_blob(layer: Layer, where: str) -> Blob | None:
    packing = _packing(layer, where)
    # Attestations and the like lie beside the layers, and hold no files.
    return _blob(layer, "", packing) if packing is not None else None


def _artifact_blob(layer: Layer, where: str) -> Blob | None:
    packing = Packing.TAR_GZIP if layer.is_directory else _packing(layer, where)
    if layer.name and layer.media_type == _FILE_OR_TAR and not layer.is_directory:
        packing = None
    if packing is not None:
        # Members bring their directory along.
        return _blob(layer, "", packing)
    if layer.name:
        return _blob(layer, layer.name, None)
    if layer.media_type == _EMPTY_LAYER:
        return None
    raise UnsupportedSource(
        f"{where}: nothing names the file in the layer of type {layer.media_type[:100]!r}; push "
        "files with `oras push`, which names them, or an image with the files in /models"
    )


def _unpacked_alone(blobs: list[Blob]) -> list[Blob]:
    """One file that is an archive by its name is meant to be unpacked, as it is of any source."""
    if len(blobs) == 1 and blobs[0].packing is None and (packing := packing_of(blobs[0].path)):
        return [replace(blobs[0], path="", packing=packing)]
    return blobs


def _stripped(blobs: list[Blob]) -> list[Blob]:
    """Take the one enclosing directory off, as of archives: `oras push repo sql/*` names it."""
    top, slash, _ = blobs[0].path.partition("/") if blobs else ("", "", "")
    head = top + slash
    if not slash or is_version(top) or not all(one.path.startswith(head) for one in blobs):
        return blobs
    moved = [replace(one, path=one.path.removeprefix(head)) for one in blobs]
    is_artifact = any(
        one.path in {ADAPTER_CONFIG, MODEL_CONFIG}
        or ("/" in one.path and is_version(one.path.partition("/")[0]))
        for one in moved
    )
    return moved if is_artifact else blobs


def _packing(layer: Layer, where: str) -> Packing | None:
    found = _TAR_TYPE.fullmatch(layer.media_type)
    if found is None:
        return None
    compression = found["compression"]
    if compression in {"zstd", "zst"}:
        raise UnsupportedSource(
            f"{where}: a layer is compressed with zstd, which is not unpacked; push it with gzip "
            "(podman push --compression-format gzip, docker buildx --output compression=gzip) or "
            "without compression"
        )
    return Packing.TAR_GZIP if compression else Packing.TAR


def _blob(layer: Layer, path: str, packing: Packing | None) -> Blob:
    return Blob(
        path=path,
        key=f"sha256:{layer.digest}",
        size=layer.size,
        tag=f"sha256:{layer.digest}",
        sha256=layer.digest,
        packing=packing,
    )


def _layer(one: Mapping[str, Any], where: str) -> Layer:
    media_type, size = one.get("mediaType"), one.get("size")
    if not isinstance(media_type, str):
        raise InvalidArtifact(f"{where}: a layer of the manifest has no media type")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidArtifact(f"{where}: a layer of the manifest has no size")
    annotations = one.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    names = (annotations.get(key) for key in _NAMES)
    name = next((found for found in names if isinstance(found, str) and found), "")
    return Layer(
        media_type=media_type,
        digest=_digest(one, where),
        size=size,
        name=name.removeprefix("./"),
        is_directory=annotations.get(_UNPACK) == "true",
    )


def _digest(one: Mapping[str, Any], where: str) -> str:
    digest = one.get("digest")
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise InvalidArtifact(
            f"{where}: the manifest names something by {str(digest)[:20]!r}, and sha256 is needed"
        )
    return found[1]


def _objects(found: object, where: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InvalidArtifact(f"{where}: the manifest is malformed")
    return found
