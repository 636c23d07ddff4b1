"""A Kubernetes API without a cluster: etcd and kube-apiserver, with RBAC and ServiceAccounts.

There is no kubelet and no controller: nothing runs, and a test sets the status of Pods itself, or
lets `lab.kubelet` do it.

A watch from an old resourceVersion gets 410 after `stop_apiserver()`, `compact_etcd()`,
`start_apiserver()`. Compaction alone does not do it: a running server answers from its watch cache.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lab import LabError
from lab.golang import APISERVER, ETCD, KUBECTL, Program, find
from lab.golang import install as install_program
from lab.process import POLL_SECONDS, Process, free_port
from lab.web import is_ok, post, send

PROGRAMS = (ETCD, APISERVER, KUBECTL)


def install() -> None:
    """Build what is missing of etcd, kube-apiserver and kubectl."""
    for program in PROGRAMS:
        install_program(program)


def _path(program: Program) -> Path:
    found = find(program)
    if found is None:
        raise LabError(f"{program.name} is not installed: run `python -m lab install kube`.")
    return found


def _new_signing_key() -> str:
    """A fresh P-256 private key in SEC 1 form; its public half follows from it."""
    scalar = secrets.token_bytes(32)
    curve = bytes.fromhex("a00a06082a8648ce3d030107")
    body = bytes.fromhex("0201010420") + scalar + curve
    der = bytes([0x30, len(body)]) + body
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{text}-----END EC PRIVATE KEY-----\n"


class Kube:
    """One API server and its etcd. Everything it writes is under `work`."""

    def __init__(self, work: Path, *, apiserver_args: Sequence[str] = ()) -> None:
        self.work = work
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca_file = work / "ca.crt"
        self.admin_kubeconfig = work / "admin.kubeconfig"
        self.log = work / "kube-apiserver.log"
        self._kubectl = _path(KUBECTL)
        self._admin_token = secrets.token_hex(16)
        work.mkdir(parents=True, exist_ok=True)
        signing_key = work / "service-account.key"
        tokens = work / "tokens.csv"
        for secret, text in (
            (signing_key, _new_signing_key()),
            (tokens, f'{self._admin_token},admin,admin,"system:masters"\n'),
        ):
            secret.touch(mode=0o600)
            secret.write_text(text)
        peer = f"http://127.0.0.1:{free_port()}"
        self.etcd_url = f"http://127.0.0.1:{free_port()}"
        self.etcd = Process(
            "etcd",
            [
                _path(ETCD),
                f"--data-dir={work / 'etcd'}",
                f"--listen-client-urls={self.etcd_url}",
                f"--advertise-client-urls={self.etcd_url}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
            log=work / "etcd.log",
            cwd=work,
        )
        self.apiserver = Process(
            "kube-apiserver",
            [
                _path(APISERVER),
                f"--etcd-servers={self.etcd_url}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={self.port}",
                # It makes a CA and a certificate for itself here, and keeps them across restarts.
                f"--cert-dir={work / 'certs'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={signing_key}",
                f"--service-account-signing-key-file={signing_key}",
                f"--token-auth-file={tokens}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
                # Without controllers nobody would make the default ServiceAccount that it demands.
                "--disable-admission-plugins=ServiceAccount",
                "--allow-privileged=true",
                *apiserver_args,
            ],
            log=self.log,
            cwd=work,
        )

    def start(self, deadline: float = 90.0) -> Self:
        """Start both, and wait until the API server is ready and has its default namespace."""
        self.etcd.start()
        self.etcd.wait_ready(lambda: is_ok(f"{self.etcd_url}/health"), deadline)
        try:
            self.start_apiserver(deadline)
        except BaseException:
            self.etcd.stop()
            raise
        return self

    def start_apiserver(self, deadline: float = 90.0) -> None:
        """Start the API server, on the same port and with the same certificates as before."""
        self.apiserver.start()
        self.apiserver.wait_ready(self._is_ready, deadline)
        self._write_kubeconfig(self.admin_kubeconfig, "admin", self._admin_token, "default")

    def stop_apiserver(self) -> None:
        """Make the API unreachable, and keep its data."""
        self.apiserver.stop()

    def kill_apiserver(self) -> None:
        """End the API server as a crash would."""
        self.apiserver.kill()

    def stop(self) -> None:
        """End both."""
        self.apiserver.stop()
        self.etcd.stop()

    def kill(self) -> None:
        """End both at once; for whoever throws the data away, as it is faster than `stop`."""
        self.apiserver.kill()
        self.etcd.kill()

    def _is_ready(self) -> bool:
        certificates = self.work / "certs" / "apiserver.crt"
        if not certificates.exists():
            return False
        # The file holds the server's certificate, then the one of the CA that signed it.
        marker = "-----BEGIN CERTIFICATE-----"
        self.ca_file.write_text(marker + certificates.read_text().split(marker)[-1])
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file))
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            for path in ("/readyz", "/api/v1/namespaces/default"):
                request = urllib.request.Request(self.url + path)
                request.add_header("Authorization", f"Bearer {self._admin_token}")
                with opener.open(request, timeout=5):
                    pass
        except OSError:
            return False
        return True

    def kubectl(
        self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None
    ) -> str:
        """Run kubectl, as the admin unless told otherwise; its output, or a LabError."""
        chosen = kubeconfig or self.admin_kubeconfig
        cache = self.work / "kubectl-cache"
        done = subprocess.run(
            [self._kubectl, f"--kubeconfig={chosen}", f"--cache-dir={cache}", *arguments],
            input=input or "",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def call(
        self,
        method: str,
        path: str,
        payload: object = None,
        *,
        content_type: str = "application/json",
        timeout: float = 10.0,
    ) -> Any:  # noqa: ANN401 (JSON has any shape)
        """One request to the API as the admin: the JSON that it answers, or a LabError."""
        headers = {"Authorization": f"Bearer {self._admin_token}", "Content-Type": content_type}
        body = b"" if payload is None else json.dumps(payload).encode()
        try:
            answer = send(
                method,
                self.url + path,
                body=body,
                headers=headers,
                authority=self.ca_file,
                timeout=timeout,
            )
        except OSError as exc:
            raise LabError(f"{method} {path}: the API does not answer: {exc}") from exc
        if answer.status >= 300:
            raise LabError(f"{method} {path}: {answer.status}: {answer.text}")
        return answer.json()

    def apply(self, *objects: object) -> None:
        """Create or change objects, given as dictionaries."""
        items = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(items)
        )

    def install_crds(self, *files: Path, deadline: float = 30.0) -> None:
        """Install custom resource definitions, and wait until the API serves all of them."""
        for path in files:
            self.kubectl("apply", "--server-side", "-f", str(path))
        end = time.monotonic() + deadline
        # Not `kubectl wait`: it fails on a definition that has no conditions at all yet.
        while missing := self._unserved():
            if time.monotonic() > end:
                names = ", ".join(missing)
                raise LabError(f"not established within {deadline:.0f} s: {names}")
            time.sleep(POLL_SECONDS)

    def _unserved(self) -> list[str]:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        return [
            definition["metadata"]["name"]
            for definition in self.call("GET", path)["items"]
            if not any(
                (one["type"], one["status"]) == ("Established", "True")
                for one in definition.get("status", {}).get("conditions") or ()
            )
        ]

    def token(self, namespace: str, name: str, *, duration: str = "1h") -> str:
        """A token of a ServiceAccount, which is made when it is missing, with its namespace."""
        account = {"name": name, "namespace": namespace}
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        )
        return self.kubectl(
            "create", "token", name, "-n", namespace, f"--duration={duration}"
        ).strip()

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig with which a client is this ServiceAccount, in this namespace."""
        path = self.work / f"{namespace}-{name}.kubeconfig"
        self._write_kubeconfig(path, name, self.token(namespace, name), namespace)
        return path

    def _write_kubeconfig(self, path: Path, user: str, token: str, namespace: str) -> None:
        authority = base64.b64encode(self.ca_file.read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        context = {"cluster": "lab", "user": user, "namespace": namespace}
        # JSON is YAML, and needs no library.
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": context}],
            "current-context": "lab",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=1))

    def compact_etcd(self) -> int:
        """Forget every revision before the present one, which is returned."""
        key = base64.b64encode(b"/").decode()
        answer = post(f"{self.etcd_url}/v3/kv/range", {"key": key, "count_only": True}).json()
        revision = int(answer["header"]["revision"])
        done = post(f"{self.etcd_url}/v3/kv/compaction", {"revision": revision, "physical": True})
        if done.status != 200:
            raise LabError(f"etcd did not compact: {done.text}")
        return revision

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
