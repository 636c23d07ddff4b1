"""Settings: what the pod says of itself, and flags that do not fit together."""

import argparse
import socket
from dataclasses import replace
from typing import Any

import pytest

from adapters import engine_names
from sidecar.flags import UsageError
from sidecar.settings import Settings, check_for_run, from_flags

GOOD = Settings(config_dir="/config")


def test_pod_is_named_by_the_downward_api():
    environment = {"POD_NAME": "chat-0", "POD_UID": "u-1", "POD_NAMESPACE": "chat"}
    settings = from_flags(argparse.Namespace(), environment)
    assert (settings.pod_name, settings.pod_uid, settings.pod_namespace) == (
        "chat-0",
        "u-1",
        "chat",
    )


def test_pod_without_a_name_is_its_host():
    assert from_flags(argparse.Namespace(), {}).pod_name == socket.gethostname()


@pytest.mark.parametrize("place", ["config_dir", "config_file", "configmap"])
@pytest.mark.parametrize("engine", engine_names())
def test_one_place_of_documents_and_a_known_engine_are_enough(place, engine):
    repository = "/models" if engine == "triton" else None
    settings = Settings(engine=engine, repository_dir=repository)
    fields: dict[str, Any] = {place: "x"}
    check_for_run(replace(settings, **fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "vlm"}, "no engine 'vlm'; known engines: vllm"),
        ({"config_dir": None}, "exactly one of --config-dir"),
        ({"config_file": "x"}, "exactly one of --config-dir"),
        ({"configmap": "x"}, "exactly one of --config-dir"),
        ({"namespace": "x"}, "goes with --configmap"),
        ({"kubeconfig": "x"}, "goes with --configmap"),
        ({"engine_metrics_url": ("http://a", "http://b")}, "give one for each"),
        ({"engine_url": ("http://h:99999999",)}, "no address of an engine"),
        ({"engine_url": ("http://[::1",)}, "no address of an engine"),
        ({"engine_url": ("http://",)}, "no address of an engine"),
        ({"engine_url": ("",)}, "no address of an engine"),
        ({"engine_url": ("http://user:pw@",)}, r"\*\*\*@"),
        ({"tls_cert_file": "x"}, "go together"),
        ({"tls_key_file": "x"}, "go together"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        check_for_run(replace(GOOD, **fields))
