"""vLLM's command line. Source: ``vllm serve --help``, ``vllm/entrypoints/cli/serve.py`` (0.32)."""

from __future__ import annotations

from sidecar.cluster.inject.engine_flags import EngineFlags
from sidecar.cluster.inject.facts import SAY_FLAGS, Facts

RUNTIME_LORAS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
_DEFAULT_PORT = "8000"
_DEFAULT_MAX_LORAS, _DEFAULT_MAX_RANK = "1", "16"


def read_vllm(facts: Facts) -> None:
    """Collect what vLLM's command line says."""
    flags = facts.engine_flags()
    _allow_runtime_loras(facts)
    facts.read_api_key(variable="VLLM_API_KEY", argument=flags.last("--api-key") or None)
    if facts.invocation is None or flags.has("--config"):
        what = "its flags are in a file" if facts.invocation else "its command line is not known"
        if "engine_url" not in facts.given:
            facts.refuse(
                f"vLLM's port cannot be read: {what}",
                f"say --engine-url=http://127.0.0.1:PORT {SAY_FLAGS}, and --max-loras and the "
                "like as vLLM has them",
            )
        return
    _read_listening(facts, flags)
    _read_loras(facts, flags)
    _check_one_api_server(facts, flags)
    if flags.is_on("--disable-log-stats"):
        facts.notes.append(
            "vLLM runs with --disable-log-stats: the picker gets neither queue nor KV usage"
        )


def _allow_runtime_loras(facts: Facts) -> None:
    entries = facts.container.get("env") or ()
    value = facts.env_value(RUNTIME_LORAS)
    named = any(isinstance(one, dict) and one.get("name") == RUNTIME_LORAS for one in entries)
    if named or value is not None:
        # vLLM takes these two for yes, and everything else for no.
        if value is not None and value.strip().lower() not in ("1", "true"):
            facts.refuse(
                f"{RUNTIME_LORAS} is {value!r}: vLLM loads no LoRA for the agent",
                "set it to 1, or leave it out",
                where=f"{facts.where}.env",
            )
        return
    facts.env[RUNTIME_LORAS] = "1"
    facts.notes.append(
        f"{RUNTIME_LORAS}=1 is set in {facts.container.get('name')!r}: whoever reaches vLLM's port "
        "can load and unload LoRAs"
    )


def _read_listening(facts: Facts, flags: EngineFlags) -> None:
    if flags.has("--uds", "--grpc") and "engine_url" not in facts.given:
        facts.refuse("vLLM serves no http on a port", "start it without --uds and --grpc")
        return
    https = flags.has("--ssl-keyfile", "--ssl-certfile")
    facts.derive_url(
        "vLLM", flags.last("--host"), flags.last("--port", default=_DEFAULT_PORT), https=https
    )


def _read_loras(facts: Facts, flags: EngineFlags) -> None:
    if not flags.is_on("--enable-lora"):
        facts.refuse(
            "vLLM is started without --enable-lora, and can hold no LoRA",
            "add --enable-lora, and --max-loras, --max-cpu-loras and --max-lora-rank as you need",
        )
    slots = flags.last("--max-loras", default=_DEFAULT_MAX_LORAS)
    facts.derive_number("max_loras", "--max-loras", slots)
    held = flags.last("--max-cpu-loras", default=slots)
    facts.derive_number("max_cpu_loras", "--max-cpu-loras", held)
    rank = flags.last("--max-lora-rank", default=_DEFAULT_MAX_RANK)
    facts.derive_number("max_lora_rank", "--max-lora-rank", rank)


def _check_one_api_server(facts: Facts, flags: EngineFlags) -> None:
    """vLLM refuses to start with runtime LoRAs and several API servers (serve.py)."""
    said = flags.last("--api-server-count", "-asc")
    if flags.is_on("--headless") or said == "0":
        facts.refuse("vLLM runs without an API server here", "inject the pod that has one")
        return
    one = "vLLM allows runtime LoRAs with one API server only"
    if said:
        if said != "1":
            facts.refuse(f"--api-server-count is {said}: {one}", "set --api-server-count=1")
        return
    if facts.invocation is None or facts.invocation.is_module:
        return
    if flags.has("--data-parallel-multi-port-external-lb"):
        if "engine_url" not in facts.given:
            what = "every data-parallel rank has a port of its own"
            facts.refuse(what, f"say --engine-url=http://127.0.0.1:PORT for each {SAY_FLAGS}")
        return
    if flags.has("--data-parallel-external-lb", "--data-parallel-rank", "-dpn"):
        return
    name, short = "--data-parallel-size", "-dp"
    if flags.has("--data-parallel-hybrid-lb", "--data-parallel-start-rank", "-dpr"):
        name, short = "--data-parallel-size-local", "-dpl"
    size = flags.last(name, short, default="1")
    if size != "1":
        what = f"{name} is {size}, which starts as many API servers: {one}"
        facts.refuse(what, "add --api-server-count=1")
