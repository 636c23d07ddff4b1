"""SGLang's command line. Source: ``sglang/srt/server_args.py`` of 0.5.23."""

from __future__ import annotations

from sidecar.cluster.inject.facts import SAY_FLAGS, Facts

_DEFAULT_PORT = "30000"


def read_sglang(facts: Facts) -> None:
    """Collect what SGLang's command line says."""
    flags = facts.engine_flags()
    key = flags.last("--api-key") or None
    admin = flags.last("--admin-api-key") or None
    # With an admin key set, loading takes that one alone; see docs/engines.md.
    facts.read_api_key(variable=None, argument=admin or key)
    if facts.invocation is None or flags.has("--config"):
        if "engine_url" not in facts.given:
            facts.refuse(
                "SGLang's port cannot be read: its command line is not known",
                f"say --engine-url=http://127.0.0.1:PORT {SAY_FLAGS}",
            )
        return
    https = flags.has("--ssl-keyfile", "--ssl-certfile")
    facts.derive_url(
        "SGLang", flags.last("--host"), flags.last("--port", default=_DEFAULT_PORT), https=https
    )
    if not flags.has("--enable-lora", "--lora-paths"):
        facts.refuse(
            "SGLang is started without --enable-lora, and can hold no LoRA",
            "add --enable-lora, --max-lora-rank and --lora-target-modules",
        )
    if rank := flags.last("--max-lora-rank"):
        facts.derive_number("max_lora_rank", "--max-lora-rank", rank)
    replicas = flags.last("--dp-size", "--data-parallel-size", "--dp", default="1")
    if replicas != "1":
        facts.refuse(
            f"SGLang has {replicas} data-parallel replicas, and loads no LoRA then",
            "run as many pods instead",
        )
    if not flags.has("--enable-metrics"):
        facts.notes.append("SGLang runs without --enable-metrics: the picker gets no KV usage")
