"""A model-config ConfigMap, edited from outside: create, exists, delete, list, add, remove.

These are the six operations of Michelangelo's ModelConfigProvider, for its own format and the
native one::

    async with open_client(kubeconfig) as client:
        config = ModelConfig(client, "chat", "models", format=Format.NATIVE)
        await config.create()
        await config.add(NativeModel(name="sql-lora", source="s3://adapters/sql/v4/"))

Each says what shall be, and is done where it is so already. A write carries the resource_version
that it was made from; when another writer was faster it is made anew from what that one wrote, so
that no update is lost. After an answer that never came the ConfigMap is read before anything is
done again. Errors: ``KubeError`` (``sidecar.kube.errors``), ``DocumentError`` for a document that
is broken, which is never written over, and ``ModelConfigError``.

The credentials are the client's: a controller opens a client anew when they were refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import TypeVar

from sidecar.cluster import configmaps
from sidecar.cluster.configmaps import Address, Object
from sidecar.cluster.edits import NATIVE_KEYS, Edited, add_entry, key_for, remove_entry
from sidecar.cluster.entries import MichelangeloModel, ModelEntry, NativeModel
from sidecar.cluster.results import Listing, ModelConfigError, Written
from sidecar.cluster.retries import persist
from sidecar.core.accept import Accepted, AcceptOptions, Pod, accept
from sidecar.core.desired import Format
from sidecar.core.documents import is_known_key
from sidecar.core.documents.recognise import MODEL_LIST_KEY
from sidecar.errors import DocumentError
from sidecar.kube.client import KubeClient
from sidecar.sources.configmap import Seen, snapshot_of

__all__ = [
    "Listing",
    "MichelangeloModel",
    "ModelConfig",
    "ModelConfigError",
    "NativeModel",
    "Written",
    "michelangelo_name",
]

COMPONENT = ("app.kubernetes.io/component", "model-config")
DOCUMENTS = ("model-sidecar.io/documents", "true")
"""Asks the admission webhook, where there is one, to refuse broken documents."""
SUFFIX = "-model-config"
SERVER_LABEL = "michelangelo.ai/inference-server"

Answer = TypeVar("Answer")


def michelangelo_name(server: str) -> str:
    """Return the name of the ConfigMap of one of Michelangelo's inference servers."""
    return server + SUFFIX


class ModelConfig:
    """One ConfigMap. ``format`` None is told from what is in it, and native where nothing tells.

    ``namespace`` None is the client's own. ``key`` names the native document's key where it is not
    one of the known ones (the agents' ``--config-key``). Raises ``ValueError`` for names that
    Kubernetes does not allow.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str | None,
        name: str,
        *,
        format: Format | None = None,
        key: str | None = None,
        random: Random | None = None,
    ) -> None:
        if format not in (None, Format.NATIVE, Format.MICHELANGELO):
            raise ValueError(f"documents of format {format} are read, and not written")
        if format is Format.MICHELANGELO and key not in (None, MODEL_LIST_KEY):
            raise ValueError(f"the key of a document of format {format} is {MODEL_LIST_KEY}")
        self.address = Address(namespace or client.namespace, name)
        self._client = client
        self._format = format
        self._key = key
        self._random = random if random is not None else Random()

    async def create(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Written:
        """Create the ConfigMap, with no document in it; one that is there stays as it is.

        It gets a label by which the admission webhook knows it. In Michelangelo's format it gets
        Michelangelo's labels instead, and its name must be that of ``michelangelo_name``.
        """
        is_theirs = self._format is Format.MICHELANGELO
        more = self._michelangelo_labels() if is_theirs else dict([DOCUMENTS])
        known = dict([COMPONENT]) | more
        sent = False

        async def attempt() -> Written:
            nonlocal sent
            # After a timeout "it is there already" may be our own work.
            before, sent = sent, True
            made = await configmaps.create(
                self._client, self.address, {**known, **(labels or {})}, annotations or {}
            )
            return Written(changed=made or before)

        return await self._persist(attempt)

    async def exists(self) -> bool:
        """Tell whether the ConfigMap is there, whatever is in it."""
        return await self._persist(self._read) is not None

    async def delete(self) -> Written:
        """Delete the ConfigMap; agents keep what it last asked for.

        Raises ``ModelConfigError`` for one that holds no document and was not created as this.
        """
        sent = False

        async def attempt() -> Written:
            nonlocal sent
            found = await self._read()
            if found is None:
                return Written(changed=sent)
            self._refuse_stranger(found)
            sent = True
            return Written(changed=await configmaps.delete(self._client, self.address, found))

        return await self._persist(attempt)

    async def list(self) -> Listing:
        """Return what the ConfigMap's documents say: those of the format, where one was given.

        Raises ``ModelConfigError`` where there is no ConfigMap.
        """
        found = await self._persist(self._read)
        if found is None:
            raise self._missing()
        accepted = self._accepted(found)
        documents = {
            key: document
            for key, document in accepted.documents.items()
            if self._format in (None, document.format)
        }
        return Listing(
            documents=documents,
            problems=accepted.problems,
            valid=accepted.valid,
            digest=_digest(accepted),
            resource_version=configmaps.version(found),
        )

    async def find_format(self) -> Format:
        """Return the format in which ``remove`` would look. Raises ``ModelConfigError`` where
        there is no ConfigMap."""
        found = await self._persist(self._read)
        if found is None:
            raise self._missing()
        return self._form(found, None)

    async def add(self, entry: ModelEntry) -> Written:
        """Let the document hold this entry, in the place of the one that has its name (with
        Michelangelo: its deployment and name).

        Fields that no version of the format knows stay in it; known ones that ``entry`` leaves out
        are taken away. Raises ``ModelConfigError`` where there is no ConfigMap, or its format is
        another one.
        """

        def edit(key: str, text: str | None, _form: Format) -> Edited:
            return add_entry(key, text, entry)

        return await self._edit(edit, entry.name, asked=entry.format)

    async def remove(self, name: str, *, deployment: str = "") -> Written:
        """Let the document hold no entry of this name (with Michelangelo: of this deployment)."""

        def edit(key: str, text: str | None, form: Format) -> Edited:
            return remove_entry(key, text, form, name, owner=deployment)

        return await self._edit(edit, name, asked=None)

    async def _edit(
        self,
        edit: Callable[[str, str | None, Format], Edited],
        name: str,
        *,
        asked: Format | None,
    ) -> Written:
        sent = False

        async def attempt() -> Written:
            nonlocal sent
            found = await self._read()
            if found is None:
                if asked is not None:
                    raise self._missing()
                return Written(changed=sent)
            form = self._form(found, asked)
            key, text = self._document(found, form)
            edited = edit(key, text, form)
            if edited.changed and edited.text is not None:
                sent = True
                await configmaps.replace(self._client, self.address, found, key, edited.text)
                found = {**found, "data": {**(found.get("data") or {}), key: edited.text}}
            accepted = self._accepted(found)
            return Written(
                # What was sent before and is there now may be our own work.
                changed=edited.changed or sent,
                key=key,
                digest=_digest(accepted),
                problems=tuple(one for one in accepted.problems if one.name == name),
                comments_lost=edited.comments_lost,
                others=edited.others,
            )

        return await self._persist(attempt)

    async def _read(self) -> Object | None:
        return await configmaps.read(self._client, self.address)

    async def _persist(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        return await persist(attempt, str(self.address), self._random)

    def _form(self, found: Object, asked: Format | None) -> Format:
        form = self._format or self._told(found) or asked
        if form is None:
            what = f"{self.address} holds documents of the native and of Michelangelo's format"
            raise ModelConfigError(f"{what}: name the one that is meant (--format)")
        if asked in (None, form):
            return form
        what = f"an entry of format {asked} does not fit {self.address}, whose format is {form}"
        raise ModelConfigError(f"{what}; name the format (--format) where it shall hold both")

    def _told(self, found: Object) -> Format | None:
        """Return the format that the ConfigMap tells; None where it holds both."""
        data = found.get("data") or {}
        if self._key not in (None, MODEL_LIST_KEY):
            return Format.NATIVE
        if MODEL_LIST_KEY not in data and SERVER_LABEL not in _labels(found):
            return Format.NATIVE
        both = MODEL_LIST_KEY in data and any(key in data for key in NATIVE_KEYS)
        return None if both else Format.MICHELANGELO

    def _document(self, found: Object, form: Format) -> tuple[str, str | None]:
        data, binary = found.get("data") or {}, found.get("binaryData") or {}
        if form is Format.NATIVE and self._key is not None:
            key = self._key
        else:
            key = key_for(form, (*data, *binary))
        if key in binary:
            hint = "move it to data, or edit it by hand"
            raise DocumentError("its text is in binaryData", where=key, hint=hint)
        return key, data.get(key)

    def _accepted(self, found: Object) -> Accepted:
        """Return what an agent makes of it that never saw it before."""
        seen = Seen(resource_version=configmaps.version(found), configmap=found)
        snapshot = snapshot_of(seen, str(self.address), seen_at=0.0)
        return accept(None, snapshot, Pod(name=""), AcceptOptions(config_key=self._key))

    def _refuse_stranger(self, found: Object) -> None:
        known = any(is_known_key(key) for key in found.get("data") or {})
        ours = _labels(found).get(COMPONENT[0]) == COMPONENT[1]
        if known or ours or self._accepted(found).documents:
            return
        what = f"{self.address} holds no document and has no label {'='.join(COMPONENT)}"
        raise ModelConfigError(f"{what}: it is no model config; delete it with kubectl")

    def _missing(self) -> ModelConfigError:
        hint = "create it first (models create)"
        return ModelConfigError(f"{self.address} does not exist; {hint}")

    def _michelangelo_labels(self) -> dict[str, str]:
        server = self.address.name.removesuffix(SUFFIX)
        if server in ("", self.address.name):
            what = f"{self.address.name} is no name that Michelangelo's controllers look for"
            raise ModelConfigError(f"{what}: write SERVER{SUFFIX}")
        return {"app.kubernetes.io/part-of": "michelangelo", SERVER_LABEL: server}


def _digest(accepted: Accepted) -> str | None:
    return accepted.desired.digest if accepted.desired is not None else None


def _labels(found: Object) -> Mapping[str, str]:
    labels = found["metadata"].get("labels")
    return labels if isinstance(labels, dict) else {}
