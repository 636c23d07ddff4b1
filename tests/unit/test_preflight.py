import json

import pytest

from adapters.base import EngineState, Kind, Limits
from lab.tiny_model import write_lora
from sidecar.artifacts.preflight import Preflight
from sidecar.core.desired import Format
from sidecar.core.inventory import Revision
from sidecar.errors import IncompatibleArtifact, InvalidArtifact, NotFound
from tests.support.loras import (
    entry_for,
    lora_shapes,
    write_safetensors,
    write_tiny_lora,
    write_tiny_model,
)

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@pytest.fixture
def check():
    preflight = Preflight()

    async def run(path, *, engine=None, max_rank=None, kind=Kind.LORA, **fields):
        revision = Revision(name="sql", kind=kind, revision="0" * 24, path=str(path))
        limits = Limits(max_lora_rank=max_rank)
        return await preflight.check(revision, entry_for(path, **fields), engine, limits)

    yield run
    preflight.close()


def _engine(path=None, *names):
    return EngineState(
        base_names=frozenset(names), base_model_path=None if path is None else str(path)
    )


def _base(directory, **fields):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(LLAMA | fields))
    return _engine(directory)


# LoRAs by themselves.


async def test_a_sound_lora_passes_unchanged(check, tmp_path):
    path = write_lora(tmp_path / "lora", seed=1)
    revision = await check(path, engine=_engine("/models/base", "base"), max_rank=16)
    assert revision.path == str(path)
    assert (await check(write_tiny_lora(tmp_path / "tiny"))).name == "sql"


async def test_an_unverified_revision_is_not_looked_at():
    preflight = Preflight()
    revision = Revision(name="sql", kind=Kind.LORA, revision="0", path="org/repo", verified=False)
    entry = entry_for("org/repo", passthrough=True)
    assert await preflight.check(revision, entry, None, Limits()) == revision
    preflight.close()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
async def test_a_missing_file_is_named(check, tmp_path, name):
    path = write_tiny_lora(tmp_path / "lora")
    (path / name).unlink()
    with pytest.raises(InvalidArtifact, match=name):
        await check(path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is True"),
        ({"r": None}, "r is None"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": 3}, "peft_type"),
        ({"rank_pattern": {"q_proj": -1}}, "q_proj"),
        ({"rank_pattern": [1]}, "rank_pattern"),
    ],
)
async def test_a_config_that_is_none_of_a_lora_is_invalid(check, tmp_path, config, said):
    with pytest.raises(InvalidArtifact, match=said):
        await check(write_tiny_lora(tmp_path / "lora", **config))


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 5000])
async def test_a_config_that_is_no_json_object_is_invalid(check, tmp_path, text):
    path = write_tiny_lora(tmp_path / "lora")
    (path / "adapter_config.json").write_text(text)
    with pytest.raises(InvalidArtifact, match=r"adapter_config\.json"):
        await check(path)


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules"])
async def test_fields_that_engines_require_must_be_there(check, tmp_path, field):
    path = write_tiny_lora(tmp_path / "lora")
    config = json.loads((path / "adapter_config.json").read_text())
    del config[field]
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArtifact, match=f"field {field} is missing"):
        await check(path)


async def test_truncated_weights_are_invalid(check, tmp_path):
    path = write_tiny_lora(tmp_path / "lora")
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidArtifact, match="broken safetensors"):
        await check(path)


async def test_weights_without_tensors_are_invalid(check, tmp_path):
    path = write_tiny_lora(tmp_path / "lora")
    write_safetensors(path / "adapter_model.safetensors", {})
    with pytest.raises(InvalidArtifact, match="no tensor"):
        await check(path)


A, B = (
    "model.layers.0.self_attn.q_proj.lora_A.weight",
    "model.layers.0.self_attn.q_proj.lora_B.weight",
)


@pytest.mark.parametrize(
    "shapes",
    [
        {A: (4, 32), B: (32, 8)},
        {A: (8, 32), B: (32, 8)},
        {A: (4, 32)},
        {B: (32, 4)},
    ],
)
async def test_ranks_that_contradict_each_other_or_the_config_are_invalid(check, tmp_path, shapes):
    with pytest.raises(InvalidArtifact, match=r"layers\.0\.self_attn\.q_proj"):
        await check(write_tiny_lora(tmp_path / "lora", shapes=shapes))


async def test_a_rank_of_its_own_is_what_the_pattern_gives_the_module(check, tmp_path):
    shapes = {A: (16, 32), B: (32, 16)}
    await check(write_tiny_lora(tmp_path / "a", shapes=shapes, rank_pattern={"q_proj": 16}))
    await check(write_tiny_lora(tmp_path / "b", shapes=shapes, rank_pattern={".*q_proj": 16}))
    with pytest.raises(InvalidArtifact):
        await check(write_tiny_lora(tmp_path / "c", shapes=shapes, rank_pattern={"proj": 16}))


async def test_a_pattern_cannot_keep_the_agent_busy(check, tmp_path):
    shapes = {f"{'a' * 40}!.lora_A.weight": (4, 8), f"{'a' * 40}!.lora_B.weight": (8, 4)}
    await check(
        write_tiny_lora(tmp_path / "lora", shapes=shapes, rank_pattern={"(a+)+b": 4, "(a|a)*c": 4})
    )


@pytest.mark.parametrize(
    "shapes",
    [
        {"model.layers.0.mlp.experts.lora_A.weight": (64, 32)},
        {"conv.lora_A.weight": (4, 3, 3, 3), "conv.lora_B.weight": (8, 4, 1, 1)},
        {"base_model.model.score.weight": (2, 32)},
        {"something.else": (7,)},
    ],
)
async def test_tensors_of_other_forms_are_left_to_the_engine(check, tmp_path, shapes):
    await check(write_tiny_lora(tmp_path / "lora", shapes=lora_shapes() | shapes))


# LoRAs and what the engine takes.


async def test_a_rank_above_the_limit_is_incompatible_and_says_what_to_do(check, tmp_path):
    path = write_tiny_lora(tmp_path / "lora", rank=32)
    with pytest.raises(IncompatibleArtifact, match="--max-lora-rank 32"):
        await check(path, max_rank=16)
    await check(path, max_rank=32)
    await check(path)
    pattern = write_tiny_lora(tmp_path / "pattern", rank_pattern={"v_proj": 64})
    with pytest.raises(IncompatibleArtifact, match="--max-lora-rank 64"):
        await check(pattern, max_rank=32)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": [{"odd": 1}]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"alora_invocation_tokens": [1]},
        {"layer_replication": [[0, 1]]},
        {"use_bdlora": {"x": 1}},
        {"use_qalora": True},
    ],
)
async def test_what_vllm_refuses_is_refused_before_anything_is_unloaded(check, tmp_path, config):
    with pytest.raises(IncompatibleArtifact, match="refused by engines"):
        await check(write_tiny_lora(tmp_path / "lora", **config))


@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["score"]},
        {"modules_to_save": None},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [0]},
        {"use_dora": False, "layer_replication": None},
    ],
)
async def test_what_vllm_takes_is_not_refused(check, tmp_path, config):
    await check(write_tiny_lora(tmp_path / "lora", **config))


# The base model by its shape.


@pytest.mark.parametrize(
    ("module", "inputs", "outputs"),
    [
        ("q_proj", 32, 32),
        ("k_proj", 32, 16),
        ("v_proj", 32, 16),
        ("o_proj", 32, 32),
        ("gate_proj", 32, 80),
        ("up_proj", 32, 80),
        ("down_proj", 80, 32),
    ],
)
async def test_shapes_must_be_those_of_the_base_model(check, tmp_path, module, inputs, outputs):
    engine = _base(tmp_path / "base")
    fits = lora_shapes(module, inputs=inputs, outputs=outputs)
    await check(write_tiny_lora(tmp_path / "fits", shapes=fits), engine=engine)
    for change in ({"inputs": inputs * 2}, {"outputs": outputs * 2}):
        shapes = lora_shapes(module, **({"inputs": inputs, "outputs": outputs} | change))
        with pytest.raises(IncompatibleArtifact, match=f"{module}.*another base model"):
            await check(write_tiny_lora(tmp_path / "not", shapes=shapes), engine=engine)


async def test_a_layer_that_the_base_model_has_not_is_incompatible(check, tmp_path):
    engine = _base(tmp_path / "base")
    path = write_tiny_lora(tmp_path / "lora", shapes=lora_shapes(layer=2))
    with pytest.raises(IncompatibleArtifact, match="has 2 layers"):
        await check(path, engine=engine)


async def test_embeddings_must_have_the_base_models_vocabulary(check, tmp_path):
    engine = _base(tmp_path / "base")

    def shapes(words):
        name = "base_model.model.model.embed_tokens"
        return {f"{name}.lora_embedding_A": (4, words), f"{name}.lora_embedding_B": (32, 4)}

    await check(write_tiny_lora(tmp_path / "fits", shapes=shapes(100)), engine=engine)
    with pytest.raises(IncompatibleArtifact, match="embed_tokens"):
        await check(write_tiny_lora(tmp_path / "not", shapes=shapes(101)), engine=engine)


@pytest.mark.parametrize(("words", "fits"), [(90, True), (100, True), (101, False)])
async def test_an_output_head_may_lack_padding_but_not_exceed(check, tmp_path, words, fits):
    engine = _base(tmp_path / "base")
    name = "base_model.model.lm_head"
    shapes = {f"{name}.lora_A.weight": (4, 32), f"{name}.lora_B.weight": (words, 4)}
    path = write_tiny_lora(tmp_path / "lora", shapes=shapes)
    if fits:
        await check(path, engine=engine)
    else:
        with pytest.raises(IncompatibleArtifact, match="lm_head"):
            await check(path, engine=engine)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3_next"},
        {"model_type": None},
        {"model_type": ["llama"]},
        {"hidden_size": None, "head_dim": None},
        {"text_config": {"model_type": "unknown"}},
    ],
)
async def test_architectures_that_are_not_known_are_not_judged(check, tmp_path, config):
    path = write_tiny_lora(tmp_path / "lora", shapes=lora_shapes(inputs=999, outputs=999))
    await check(path, engine=_base(tmp_path / "base", **config))


async def test_a_head_size_that_is_said_counts_and_a_text_config_too(check, tmp_path):
    path = write_tiny_lora(tmp_path / "lora", shapes=lora_shapes(outputs=64))
    await check(path, engine=_base(tmp_path / "base", head_dim=16))
    await check(path, engine=_base(tmp_path / "base", text_config=LLAMA | {"head_dim": 16}))
    with pytest.raises(IncompatibleArtifact):
        await check(path, engine=_base(tmp_path / "base"))


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.vision_tower.layers.0.self_attn.q_proj",
        "base_model.model.model.layers.0.mlp.shared_expert.gate_proj",
        "base_model.model.model.layers.0.linear_attn.q_proj",
    ],
)
async def test_modules_elsewhere_in_the_model_are_not_judged(check, tmp_path, name):
    shapes = {f"{name}.lora_A.weight": (4, 999), f"{name}.lora_B.weight": (999, 4)}
    path = write_tiny_lora(tmp_path / "lora", shapes=shapes)
    await check(path, engine=_base(tmp_path / "base"))


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
async def test_an_unreadable_base_config_judges_nothing(check, tmp_path, text):
    engine = _base(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(text)
    await check(write_tiny_lora(tmp_path / "x", shapes=lora_shapes(inputs=9)), engine=engine)


# The base model by its name.


@pytest.mark.parametrize(
    ("made_for", "path", "served"),
    [
        # Equal, or equal in the last component.
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", ["chat"]),
        ("meta-llama/Llama-3.1-8B", "/models/llama-3.1-8b/", ["chat"]),
        ("/train/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", ["chat"]),
        ("org/llama", "/models/x", ["llama"]),
        ("org/llama", "/hf/hub/models--org--llama/snapshots/0123", ["chat"]),
        # A variant of the same model.
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", []),
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B-Instruct", []),
        ("meta-llama/Llama-3.1-8B-Instruct", "x/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", []),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct-AWQ", ["qwen"]),
        # Names of different sorts say nothing about each other.
        ("meta-llama/Llama-3.1-8B", "/models/merged", ["chat"]),
        ("meta-llama/Llama-3.1-8B", None, ["chat"]),
        ("./out/merged", "meta-llama/Llama-3.1-8B", ["chat"]),
        ("/home/me/merged", "/models/base", ["base"]),
        ("other", "/models/base", ["chat"]),
        ("other", None, ["base"]),
        # Nothing is said.
        (None, "org/x", ["x"]),
        ("", "org/x", ["x"]),
        (7, "org/x", ["x"]),
        ("org/x", None, []),
    ],
)
async def test_names_that_prove_nothing_are_not_refused(check, tmp_path, made_for, path, served):
    lora = write_tiny_lora(tmp_path / "lora", base_model_name_or_path=made_for)
    await check(lora, engine=_engine(path, *served))


@pytest.mark.parametrize(
    ("made_for", "path", "served"),
    [
        ("Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", ["chat"]),
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-8B", []),
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3", []),
        ("Qwen/Qwen2.5-7B", "/hf/models--meta-llama--Llama-3.1-8B/snapshots/01", ["chat"]),
        ("Qwen/Qwen2.5-7B", "/models/x", ["meta-llama/Llama-3.1-8B"]),
        ("other", "/models/base", ["base"]),
    ],
)
async def test_a_lora_for_evidently_another_model_is_refused(
    check, tmp_path, made_for, path, served
):
    lora = write_tiny_lora(tmp_path / "lora", base_model_name_or_path=made_for)
    with pytest.raises(IncompatibleArtifact, match=f"made for the base model {made_for}"):
        await check(lora, engine=_engine(path, *served))
    await check(lora)


async def test_a_document_that_names_the_engines_model_outranks_the_lora(check, tmp_path):
    lora = write_tiny_lora(tmp_path / "lora", base_model_name_or_path="Qwen/Qwen2.5-7B")
    engine = _engine("meta-llama/Llama-3.1-8B", "chat")
    await check(lora, engine=engine, base_model="chat")
    await check(lora, engine=engine, base_model="meta-llama/llama-3.1-8b")
    with pytest.raises(IncompatibleArtifact):
        await check(lora, engine=engine)


async def test_a_document_that_names_another_model_is_refused_at_its_place(check, tmp_path):
    lora = write_tiny_lora(tmp_path / "lora")
    engine = _engine("meta-llama/Llama-3.1-8B", "chat")
    for named in ("qwen", "Qwen/Qwen2.5-7B"):
        with pytest.raises(IncompatibleArtifact, match=r"models\.yaml: models\[0\]"):
            await check(lora, engine=engine, base_model=named)


async def test_a_document_of_a_format_without_that_meaning_is_not(check, tmp_path):
    lora = write_tiny_lora(tmp_path / "lora")
    engine = _engine("meta-llama/Llama-3.1-8B", "chat")
    await check(lora, engine=engine, base_model="qwen", format=Format.LORA_SYNCER)
    await check(
        lora, engine=_engine("/models/merged", "chat"), base_model="meta-llama/Llama-3.1-8B"
    )


# Models.


async def test_a_model_of_tritons_layout_passes(check, tmp_path):
    await check(write_tiny_model(tmp_path / "a"), kind=Kind.MODEL)
    await check(write_tiny_model(tmp_path / "b", config=None), kind=Kind.MODEL)
    await check(write_tiny_model(tmp_path / "c", config='name: "sql"'), kind=Kind.MODEL)


async def test_a_model_that_calls_itself_otherwise_is_refused(check, tmp_path):
    path = write_tiny_model(tmp_path / "model", config='name: "nosql"')
    with pytest.raises(InvalidArtifact, match=r"'nosql'.*'sql'"):
        await check(path, kind=Kind.MODEL)
    await check(path, kind=Kind.MODEL, parameters={"config": '{"backend": "python"}'})


async def test_a_model_without_versions_or_files_is_refused(check, tmp_path):
    path = write_tiny_model(tmp_path / "model")
    (path / "1" / "model.py").unlink()
    with pytest.raises(InvalidArtifact, match="are empty"):
        await check(path, kind=Kind.MODEL)
    (path / "config.pbtxt").write_text('backend: "python" default_model_filename: "../x.py"')
    await check(path, kind=Kind.MODEL)
    (path / "config.pbtxt").write_text('backend: "identity"')
    await check(path, kind=Kind.MODEL)
    (path / "1").rmdir()
    (path / "v1").mkdir()
    with pytest.raises(InvalidArtifact, match="numeric version directory"):
        await check(path, kind=Kind.MODEL)


async def test_an_ensemble_tells_its_parts(check, tmp_path):
    text = 'platform: "ensemble" ensemble_scheduling { step { model_name: "a" } }'
    path = tmp_path / "model"
    (path / "1").mkdir(parents=True)
    (path / "config.pbtxt").write_text(text)
    assert (await check(path, kind=Kind.MODEL)).parts == ("a",)
    override = {"ensemble_scheduling": {"step": [{"model_name": "b"}, {"modelName": "c"}, 7]}}
    for value in (override, json.dumps(override)):
        checked = await check(path, kind=Kind.MODEL, parameters={"config": value})
        assert checked.parts == ("b", "c")


@pytest.mark.parametrize("value", ["{", "[]", 7, '"x"'])
async def test_an_override_that_is_no_json_object_is_refused(check, tmp_path, value):
    path = write_tiny_model(tmp_path / "model")
    with pytest.raises(InvalidArtifact, match=r"parameters\.config"):
        await check(path, kind=Kind.MODEL, parameters={"config": value})


async def test_files_that_vanished_are_an_artifact_error(check, tmp_path):
    with pytest.raises(InvalidArtifact):
        await check(tmp_path / "gone")
    with pytest.raises(NotFound):
        await check(tmp_path / "gone", kind=Kind.MODEL)
