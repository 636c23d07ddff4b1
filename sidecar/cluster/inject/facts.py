"""What the agent has to know of an engine, collected while its command line is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.cluster.inject.engine_flags import EngineFlags
from sidecar.cluster.inject.invocation import Invocation, literal_env
from sidecar.cluster.inject.model import JsonView
from sidecar.core.desired import Problem

HERE_4, HERE_6 = "127.0.0.1", "[::1]"
_ALL_OR_LOOPBACK = {
    "": HERE_4, "0.0.0.0": HERE_4, "127.0.0.1": HERE_4, "localhost": HERE_4,
    "::": HERE_6, "::1": HERE_6, "[::]": HERE_6, "[::1]": HERE_6,
}  # fmt: skip
_OF_KUBELET = re.compile(r"\$\(([A-Za-z_][\w.-]*)\)")
_IN_SHELL = re.compile(_OF_KUBELET.pattern + r"|\$\{([A-Za-z_]\w*)\}|\$([A-Za-z_]\w*)")
SAY_FLAGS = "by annotation model-sidecar.io/flags"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """One key of a Secret."""

    name: str
    key: str
    optional: bool = False


@dataclass(slots=True, kw_only=True)
class Facts:
    """Grows while one engine is read; ``given`` are the agent's flags that somebody said."""

    invocation: Invocation | None
    container: JsonView
    where: str
    """Place of the container."""
    given: frozenset[str]
    flags: dict[str, str] = field(default_factory=dict)
    """The agent's flags by field of ``Settings``."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables that the engine needs."""
    api_key: SecretKey | None = None
    repository: str | None = None
    """Directory of Triton's models, as the engine sees it."""
    loads_at_start: bool = False
    """Triton loads models of that directory when it starts."""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Where the engine's flags stand."""
        return self.invocation.where if self.invocation else self.where

    def engine_flags(self) -> EngineFlags:
        return EngineFlags(self.invocation.arguments if self.invocation else ())

    def env_value(self, name: str) -> str | None:
        """Return a variable of the engine where the manifest or its script says the value."""
        said = dict(self.invocation.assignments) if self.invocation else {}
        return said.get(name) or literal_env(self.container).get(name)

    def derive(self, field_name: str, value: str) -> None:
        """Set a flag of the agent, unless somebody said it."""
        if field_name not in self.given:
            self.flags[field_name] = value

    def refuse(self, what: str, hint: str, *, where: str | None = None) -> None:
        self.problems.append(Problem(where=where or self.place, what=what, hint=hint))

    def derive_number(self, field_name: str, name: str, text: str) -> None:
        """Set a flag of the agent from a number on the engine's command line."""
        if field_name in self.given:
            return
        if text.isascii() and text.isdigit() and int(text) > 0:
            self.flags[field_name] = str(int(text))
        else:
            ours = "--" + field_name.replace("_", "-")
            self.refuse(
                f"{name} is {text!r}, which cannot be read here", f"say {ours}=N {SAY_FLAGS}"
            )

    def derive_url(self, engine: str, host: str, port: str, *, https: bool = False) -> None:
        """Set where the engine listens, as its pod sees it."""
        if https and "engine_ca_file" not in self.given:
            self.refuse(
                f"{engine} serves https, and its certificate has to be checked",
                f"say --engine-ca-file=FILE and --engine-url=https://NAME:PORT {SAY_FLAGS}",
            )
        if "engine_url" in self.given:
            return
        scheme = "https" if https else "http"
        hint = f"say --engine-url={scheme}://HOST:PORT {SAY_FLAGS}"
        if host not in _ALL_OR_LOOPBACK:
            self.refuse(
                f"the engine listens on {host!r} alone", f"let it listen on 0.0.0.0, or {hint}"
            )
        elif not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            self.refuse(f"its port is {port!r}, which cannot be read here", hint)
        else:
            self.flags["engine_url"] = f"{scheme}://{_ALL_OR_LOOPBACK[host]}:{int(port)}"

    def read_api_key(self, *, variable: str | None, argument: str | None) -> None:
        """Find the Secret that holds the engine's API key, from its flag or its variable."""
        if "engine_api_key_file" in self.given:
            return
        names = [variable] if variable else []
        if argument:
            name = self._variable(argument)
            if name is None:
                self._refuse_plain_key("the API key stands in the command line")
                return
            names = [name]
        entries = self.container.get("env") or ()
        for entry in entries:
            if isinstance(entry, Mapping) and entry.get("name") in names:
                self._take_key(entry)
                return
        if argument:
            # `$NAME` may be a key that begins with a dollar sign: it is not repeated.
            said = names[0] if argument[1:2] in ("(", "{") else "it"
            self._refuse_plain_key(
                f"the API key is a variable, and {said} is none that this container is given"
            )
        elif variable and self.container.get("envFrom"):
            self.notes.append(
                f"{self.container.get('name')!r} has variables by envFrom: if {variable} is among "
                f"them, say --engine-api-key-file=FILE {SAY_FLAGS}, or give it by secretKeyRef"
            )

    def _variable(self, argument: str) -> str | None:
        """Return the name in ``$(NAME)``, and in ``${NAME}`` and ``$NAME`` of a shell's line."""
        is_shell = self.invocation is not None and self.invocation.is_shell
        match = (_IN_SHELL if is_shell else _OF_KUBELET).fullmatch(argument)
        return next(one for one in match.groups() if one) if match else None

    def _take_key(self, entry: JsonView) -> None:
        held = entry.get("valueFrom")
        reference = held.get("secretKeyRef") if isinstance(held, Mapping) else None
        if isinstance(reference, Mapping) and reference.get("name") and reference.get("key"):
            self.api_key = SecretKey(
                name=str(reference["name"]),
                key=str(reference["key"]),
                optional=reference.get("optional") is True,
            )
        elif entry.get("value") != "":
            self._refuse_plain_key(f"{entry.get('name')} is not read from a Secret")

    def _refuse_plain_key(self, what: str) -> None:
        self.refuse(
            what,
            "the agent reads the key from a file: put it into a Secret, and into the variable by "
            "secretKeyRef",
        )
