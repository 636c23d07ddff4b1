"""What is pushed to registries: manifests and layers as the tools of the ecosystem make them.

``artifact`` and ``image`` make a ``Pushed``; ``serve`` puts it into a ``FaultyServer`` under the
paths of the distribution spec. That stub answers what a pull asks, by GET and HEAD, with the
headers that distribution sends; it checks no more than that. ``ask_basic`` and ``ask_token`` have
it ask who is there first, the latter with a stub of a token server, written from distribution's
"Token Authentication Specification".
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from sidecar.artifacts.remote.oci import OciSource, open_oci
from sidecar.artifacts.remote.port import Blob, Contents
from sidecar.artifacts.remote.secrets import Credentials, read_credentials
from tests.support.faults import Answer, Fault, Line, Request
from tests.support.faulty import FaultyServer

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
FILEPATH = "org.cncf.model.filepath"
UNPACK = "io.deis.oras.content.unpack"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


WEIGHTS = b"weights" * 9000


@dataclass(frozen=True, kw_only=True)
class Layer:
    data: bytes
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def descriptor(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": digest_of(self.data),
            "size": len(self.data),
        }
        return found | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A manifest or an index with everything that it names."""

    text: bytes
    media_type: str
    blobs: tuple[bytes, ...] = ()
    children: tuple[Pushed, ...] = ()

    @property
    def digest(self) -> str:
        return digest_of(self.text)

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.text)}


def file(name: str, data: bytes, media_type: str = TAR, key: str = TITLE) -> Layer:
    """A file as ``oras push`` makes a layer of it, which calls it a layer of an image."""
    return Layer(data=data, media_type=media_type, annotations={key: name})


def directory(name: str, members: Mapping[str, bytes]) -> Layer:
    """A directory as ``oras push`` makes a layer of it: members begin with its name."""
    packed = tar_of({f"{name}/{path}": data for path, data in members.items()}, is_zipped=True)
    return Layer(data=packed, media_type=TAR_GZIP, annotations={TITLE: name, UNPACK: "true"})


def artifact(*layers: Layer, config: Layer | None = None, **fields: object) -> Pushed:
    config = config or Layer(data=b"{}", media_type=EMPTY)
    return _manifest(
        layers, config, {"artifactType": "application/vnd.unknown.artifact.v1", **fields}
    )


def image(*layers: Layer | bytes, **fields: object) -> Pushed:
    """A container image; bytes are a plain tar layer."""
    made = [Layer(data=one, media_type=TAR) if isinstance(one, bytes) else one for one in layers]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    )
    return _manifest(made, Layer(data=config.encode(), media_type=IMAGE_CONFIG), fields)


def index(*entries: tuple[str, Pushed] | tuple[str, Pushed, dict[str, str]]) -> Pushed:
    """An index: for each entry a platform such as ``linux/amd64``, and maybe annotations."""
    listed = []
    for platform, child, *rest in entries:
        system, _, architecture = platform.partition("/")
        entry = child.descriptor | ({"annotations": rest[0]} if rest else {})
        if platform:
            entry["platform"] = {"os": system, "architecture": architecture}
        listed.append(entry)
    said = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    children = tuple(entry[1] for entry in entries)
    return Pushed(text=json.dumps(said).encode(), media_type=INDEX, children=children)


def tar_of(
    members: Mapping[str, bytes | None],
    *,
    is_zipped: bool = False,
    links: Mapping[str, str] | None = None,
    hard_links: Mapping[str, str] | None = None,
    devices: Iterable[str] = (),
) -> bytes:
    """A tar, members in the order given; None makes a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as packed:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size = len(data)
            packed.addfile(info, io.BytesIO(data or b""))
        for kind, made in ((tarfile.SYMTYPE, links), (tarfile.LNKTYPE, hard_links)):
            for name, target in (made or {}).items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                packed.addfile(info)
        for name in devices:
            info = tarfile.TarInfo(name)
            info.type = tarfile.CHRTYPE
            packed.addfile(info)
    return gzip.compress(out.getvalue(), mtime=0) if is_zipped else out.getvalue()


class Opened:
    """Opens sources at a stub registry, and closes them all at its end."""

    def __init__(self, server: FaultyServer) -> None:
        self._server = server
        self._sources: list[OciSource] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sources:
            one.close()

    def __call__(
        self, reference: str = "team/sql:v1", credentials: Credentials | None = None
    ) -> OciSource:
        address = f"127.0.0.1:{self._server.port}"
        source = open_oci(f"oci://{address}/{reference}", credentials or environment())
        self._sources.append(source)
        return source

    def listed(self, pushed: Pushed) -> Contents:
        """Serve it as ``team/sql:v1`` and look at that."""
        serve(self._server, "team/sql", pushed, "v1")
        return self().list()


def secret(root: Path, **files: str) -> Credentials:
    """A mounted secret ``team-a``; ``_`` in the name of a file stands for a dot."""
    place = root / "team-a"
    place.mkdir(exist_ok=True)
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)
    return read_credentials("team-a", root=root, environment={})


def environment(**values: str) -> Credentials:
    return read_credentials(None, root=Path("/nowhere"), environment=values)


def whole(source: OciSource, blob: Blob) -> bytes:
    return b"".join(source.read(blob, 0, None))


def serve(server: FaultyServer, repository: str, pushed: Pushed, *tags: str) -> None:
    """Have the stub serve it, under its digest and these tags."""
    for child in pushed.children:
        serve(server, repository, child)
    for blob in pushed.blobs:
        _put(server, f"/v2/{repository}/blobs/{digest_of(blob)}", blob, "application/octet-stream")
    for reference in (pushed.digest, *tags):
        _put(server, f"/v2/{repository}/manifests/{reference}", pushed.text, pushed.media_type)


def basic_header(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def docker_config(registry: str, pair: str) -> str:
    """What ``kubectl create secret docker-registry`` writes."""
    user, _, password = pair.partition(":")
    packed = base64.b64encode(pair.encode()).decode()
    entry = {"username": user, "password": password, "auth": packed}
    return json.dumps({"auths": {registry: entry}})


def ask_basic(server: FaultyServer, pair: str) -> None:
    """Have a server refuse whoever does not send this user and password."""
    server.add(_Ask('Basic realm="stub"', lambda: {basic_header(pair)}), times=None)


@dataclass(kw_only=True)
class TokenServer:
    """What ``ask_token`` has set up."""

    pair: str
    valid: set[str] = field(default_factory=set)
    """The tokens that count."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The queries that came."""

    def expire(self) -> None:
        self.valid.clear()


def ask_token(
    registry: FaultyServer, tokens: FaultyServer, pair: str = "", realm: str = ""
) -> TokenServer:
    """Have a registry refuse whoever has no token of the other server, which is at ``/token``.

    That one gives a token to ``pair`` only; to anybody without one.
    """
    state = TokenServer(pair=pair)
    challenge = (
        f'Bearer realm="{realm or f"{tokens.url}/token"}",service="stub registry",'
        'scope="repository:team/sql:pull,push"'
    )
    tokens.add(_Give(state), path="^/token", times=None)
    registry.add(
        _Ask(challenge, lambda: {f"Bearer {token}" for token in state.valid}),
        path="^/v2/",
        times=None,
    )
    return state


class _Ask(Fault):
    def __init__(self, challenge: str, valid: Callable[[], set[str]]) -> None:
        self._challenge = challenge
        self._valid = valid

    def before(self, request: Request, line: Line) -> Answer | None:
        if request.headers.get("authorization") in self._valid():
            return None
        text = b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'
        return Answer(
            status=401,
            headers=(("WWW-Authenticate", self._challenge),),
            length=len(text),
            body=() if request.method == "HEAD" else (text,),
        )


class _Give(Fault):
    def __init__(self, state: TokenServer) -> None:
        self._state = state

    def before(self, request: Request, line: Line) -> Answer | None:
        state = self._state
        state.asked.append(dict(parse_qsl(urlsplit(request.target).query)))
        if state.pair and request.headers.get("authorization") != basic_header(state.pair):
            return Answer(status=401)
        token = f"token-{len(state.asked)}"
        state.valid.add(token)
        text = json.dumps({"token": token, "expires_in": 300}).encode()
        return Answer(status=200, length=len(text), body=(text,))


def _manifest(layers: Iterable[Layer], config: Layer, fields: Mapping[str, object]) -> Pushed:
    layers = list(layers)
    said = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor,
        "layers": [one.descriptor for one in layers],
        **fields,
    }
    blobs = dict.fromkeys(one.data for one in (config, *layers))
    return Pushed(text=json.dumps(said).encode(), media_type=MANIFEST, blobs=tuple(blobs))


def _put(server: FaultyServer, path: str, data: bytes, media_type: str) -> None:
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(data)}
    server.put(path, data, headers=headers)


LORA = artifact(
    file("adapter_config.json", b'{"r": 8}'), file("adapter_model.safetensors", WEIGHTS)
)
