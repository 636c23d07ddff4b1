"""Every flag of ``webhook``, once. Light to import: the command line does it at every start."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.flags import UsageError, define, parse_positive_seconds, parse_seconds, read_flags

SERVING, INJECTION, PROCESS = "serving", "injection", "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """All settings of one admission server."""

    listen: str = define(":9443", SERVING, "Address to serve https on.", metavar="[HOST]:PORT")
    tls_cert_file: str | None = define(
        None,
        SERVING,
        "Certificate for the Service's name, read again when it changes (cert-manager).",
        metavar="FILE",
    )
    tls_key_file: str | None = define(None, SERVING, "Its key.", metavar="FILE")
    self_signed: str | None = define(
        None,
        SERVING,
        "Instead of files: make and renew a certificate, share it in a Secret, and have the API "
        "server trust it. The name of the Service, the Secret and both webhook configurations.",
        metavar="NAME",
    )
    namespace: str | None = define(
        None,
        SERVING,
        "Namespace of that Service and Secret. Default: the pod's, or the kubeconfig's.",
        metavar="NAMESPACE",
    )
    kubeconfig: str | None = define(
        None,
        SERVING,
        "How --self-signed reaches the API server. Default: as a pod does.",
        metavar="FILE",
    )
    resync_seconds: float = define(
        30.0,
        SERVING,
        "How often --self-signed looks at Secret and configurations.",
        metavar="SECONDS",
        parse=parse_positive_seconds,
    )
    image: str | None = define(
        None,
        INJECTION,
        "Image of the agent where a pod's annotation names none. Default: this version's.",
        metavar="IMAGE",
    )
    configmap: str | None = define(
        None,
        INJECTION,
        "ConfigMap with the documents where a pod's annotation names none. Default: such a pod is "
        "refused.",
        metavar="NAME",
    )
    log_format: str = define("text", PROCESS, "Log lines.", choices=("text", "json"))
    log_level: str = define(
        "info", PROCESS, "Least level to log.", choices=("debug", "info", "warning", "error")
    )
    shutdown_grace_seconds: float = define(
        5.0,
        PROCESS,
        "How long it answers after it was asked to stop: until no API server calls it any more.",
        metavar="SECONDS",
        parse=parse_seconds,
    )


def from_flags(arguments: argparse.Namespace, environment: Mapping[str, str]) -> WebhookSettings:
    """Read flags and environment. Raises ``UsageError``."""
    settings = WebhookSettings(**read_flags(WebhookSettings, arguments, environment))
    files = (settings.tls_cert_file, settings.tls_key_file)
    if (files[0] is None) is not (files[1] is None):
        raise UsageError("--tls-cert-file and --tls-key-file belong together")
    if (files[0] is None) is (settings.self_signed is None):
        raise UsageError("API servers speak https alone: give --tls-cert-file or --self-signed")
    return settings
