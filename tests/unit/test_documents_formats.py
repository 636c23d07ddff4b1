import json

import pytest

from adapters.base import Kind
from sidecar.core.desired import Format, Readiness, Rollout
from sidecar.core.documents import (
    check_name,
    format_of_key,
    is_known_key,
    parse_document,
    recognise,
)
from sidecar.core.documents.parsed import ParsedDocument
from sidecar.errors import DocumentError
from tests.support.documents import native, recorded


def parse(key: str, text: str | object, *, expected: bool = False) -> ParsedDocument:
    written = text if isinstance(text, str) else json.dumps(text)
    document = parse_document(key, written, expected=expected)
    assert document is not None
    return document


def parse_recorded(name: str) -> ParsedDocument:
    ((key, text),) = recorded(name).items()
    return parse(key, text)


def failure(key: str, text: str | object, *, expected: bool = False) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        parse(key, text, expected=expected)
    return caught.value


def whats(document: ParsedDocument) -> str:
    return "\n".join(f"{one.where} | {one.what} | {one.hint}" for one in document.problems)


# Native


def test_native_as_recorded():
    document = parse_recorded("native")
    assert document.format is Format.NATIVE
    assert document.problems == ()
    entry = document.entries["sql-lora"]
    assert entry.where == "models.yaml: models[0] (line 2)"
    assert entry.kind is Kind.LORA
    assert entry.source == "s3://adapters/sql/v4/"
    assert entry.digest is not None
    assert entry.digest.startswith("sha256:9f86")
    assert entry.base_model == "llama-3.1-8b"
    assert entry.readiness is Readiness.REQUIRED
    assert entry.rollout == Rollout(percent=10, otherwise="s3://adapters/sql/v3/")
    assert entry.warmup is True
    assert entry.credentials == "team-a"
    assert entry.refresh_seconds == 300
    assert entry.parameters == {"is_3d_lora_weight": True}
    assert entry.owners == ()
    plain = document.entries["plain"]
    assert (plain.kind, plain.readiness, plain.warmup) == (None, Readiness.INITIAL, None)


def test_native_json_is_told_from_kserve():
    document = parse("models.json", {"models": [{"name": "a", "source": "/a"}]})
    assert document.format is Format.NATIVE
    assert list(document.entries) == ["a"]


def test_an_explicit_empty_list_is_a_document():
    for key, text in (
        ("models.yaml", "models: []"),
        ("models.yml", "[]"),
        ("model-list.json", "[]"),
        ("models.json", "[]"),
        ("configmap.yaml", "vLLMLoRAConfig: {}"),
    ):
        assert parse(key, text).names == frozenset()
    assert parse("model-list.json", "[]").format is Format.MICHELANGELO
    assert parse("models.json", "[]").format is Format.KSERVE
    assert parse("any.json", "[]", expected=True).format is Format.NATIVE


@pytest.mark.parametrize(
    ("entry", "where", "what", "hint"),
    [
        (
            "name: a, source: /a, readines: required",
            "readines",
            "unknown",
            "did you mean readiness?",
        ),
        ("name: a, source: /a, zzz: 1", "zzz", "unknown", "known fields: name"),
        ("name: a", "source", "missing", "write source:"),
        ("name: a, source: relative", "source", "no absolute path", "s3://..."),
        ("name: a, source: ftp://x/y", "source", "'ftp' is unknown", "s3://"),
        ("name: a, source: s3://", "source", "names no bucket", ""),
        ("name: a, source: 'https://[x/'", "source", "no valid https URL", ""),
        ("name: a, source: 'file:a'", "source", "no absolute path", ""),
        ("name: a, source: 'file://host/a'", "source", "needs an absolute path", "file:///"),
        ("name: a, source: /a/../b", "source", "'..'", ""),
        ("name: a, source: file:///a/../b", "source", "'..'", ""),
        ("name: a, source: 'file:///a%00b'", "source", "NUL", "%00"),
        ("name: a, source: 's3://a/b%00'", "source", "NUL", "%00"),
        ("name: a, source: ' /a'", "source", "blanks", ""),
        ("name: a, source: 7", "source", "must be text, not a number", "quotes"),
        ("name: a, source: /a, kind: lorra", "kind", "cannot be 'lorra'", "write lora or model"),
        ("name: a, source: /a, kind: ~", "kind", "must be text, not nothing", ""),
        ("name: a, source: /a, readiness: always", "readiness", "'always'", "required, initial"),
        ("name: a, source: /a, digest: abc", "digest", "no sha256", "64 hexadecimal"),
        ("name: a, source: /a, warmup: 1", "warmup", "must be true or false", ""),
        ("name: a, source: /a, pinned: 'yes'", "pinned", "not text", ""),
        ("name: a, source: /a, credentials: a/b", "credentials", "directory", "without its path"),
        ("name: a, source: /a, refresh_seconds: 0", "refresh_seconds", "range", "at least 1"),
        ("name: a, source: /a, refresh_seconds: .inf", "refresh_seconds", "range", ""),
        ("name: a, source: /a, refresh_seconds: yes", "refresh_seconds", "must be a number", ""),
        ("name: a, source: /a, parameters: []", "parameters", "mapping, not a list", ""),
        ("name: a, source: /a, parameters: {x: .nan}", "parameters", "JSON", "finite"),
        ("name: a, source: /a, rollout: 10", "rollout", "must be a mapping", ""),
        ("name: a, source: /a, rollout: {}", "rollout.percent", "no percent", ""),
        ("name: a, source: /a, rollout: {percent: 101}", "rollout.percent", "range", "0 to 100"),
        ("name: a, source: /a, rollout: {percent: .nan}", "rollout.percent", "range", ""),
        ("name: a, source: /a, rollout: {percents: 1}", "rollout.percents", "unknown", "percent?"),
        (
            "name: a, source: /a, rollout: {percent: 1, otherwise: b}",
            "rollout.otherwise",
            "no absolute path",
            "",
        ),
        ("name: a, source: /a, source: /b", "", "'source' stands twice", "remove one"),
        ("name: a, source: /a, parameters: {x: [{y: 1, y: 2}]}", "", "'y' stands twice", ""),
    ],
)
def test_a_spoiled_native_entry_is_reported_alone(entry, where, what, hint):
    document = parse("models.yaml", native("name: good, source: /g", entry))
    assert list(document.entries) == ["good"]
    assert document.undecided == {"a"}
    assert not document.incomplete
    (problem, *_) = document.problems
    assert problem.name == "a"
    place = f"models.yaml: models[1]{'.' + where if where else ''} (line 3)"
    assert problem.where == place
    assert what in problem.what
    assert hint in problem.hint


@pytest.mark.parametrize(
    "name",
    [
        "''",
        "'a,b'",
        "a/b",
        "'a\\b'",
        "'.'",
        "'..'",
        ".hidden",
        "' a'",
        "'a '",
        '"a\\nb"',
        '"a\\u200bb"',
        "7",
        "~",
        "[a]",
        "é" * 127,
        "a, name: b",
    ],
)
def test_a_name_that_cannot_be_read_leaves_the_document_incomplete(name):
    document = parse("models.yaml", native("name: good, source: /g", f"name: {name}, source: /a"))
    assert list(document.entries) == ["good"]
    assert document.undecided == frozenset()
    assert document.incomplete
    assert document.problems


@pytest.mark.parametrize("entry", ["- 7", "- ~", "- []", "- {}", "- {source: /a}"])
def test_an_entry_without_a_name_leaves_the_document_incomplete(entry):
    document = parse("models.yaml", f"models:\n{entry}\n")
    assert document.incomplete
    assert len(document.problems) >= 1


def test_a_name_from_elsewhere_is_checked_by_the_same_rules():
    assert check_name("sql-lora") is None
    assert "control character" in str(check_name("a\tb"))


def test_names_at_the_limit_are_names():
    for name in ("a" * 253, "é" * 126, "a b", "org--x@1:2", "…"):
        assert name in parse("models.yaml", native(f"name: '{name}', source: /a")).entries


@pytest.mark.parametrize(
    "source",
    [
        "/a",
        "s3://b/k",
        "gs://b",
        "az://account/container/x",
        "https://host/a.tar",
        # With a digest, or where --allow-source names it: the fetch says so.
        "http://host/a.tar",
        "hf://org/repo@main",
        "oci://registry:5000/x@sha256:00",
        "file:///a/b",
    ],
)
def test_sources_of_every_scheme(source):
    assert parse("models.yaml", native(f"name: a, source: '{source}'")).problems == ()


def test_messages_show_no_password():
    for source in ("https:/user:secret@h/x", "ftp://user:secret@h/x", "https://user:secret@[h/x"):
        document = parse("models.yaml", native(f"name: a, source: '{source}'"))
        assert document.undecided == {"a"}
        assert "secret" not in whats(document)
    paths = [{"name": "a", "storage_path": f"https://u:secret@h/{path}"} for path in "xy"]
    document = parse("model-list.json", paths)
    assert "https://***@h/x" in whats(document)
    assert "secret" not in whats(document)


def test_two_native_entries_of_one_name_are_both_undecided():
    document = parse(
        "models.yaml", native("name: a, source: /1", "name: b, source: /b", "name: a, source: /2")
    )
    assert list(document.entries) == ["b"]
    assert document.undecided == {"a"}
    (problem,) = document.problems
    assert problem.name == "a"
    assert "models.yaml: models[0] (line 2)" in problem.what


def test_an_unknown_field_at_the_top_spoils_no_entry():
    document = parse("models.yaml", native("name: a, source: /a") + "model: []\n")
    assert list(document.entries) == ["a"]
    (problem,) = document.problems
    assert (problem.name, problem.hint) == (None, "did you mean models?")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "nothing"),
        ("models:\n", "not nothing"),
        ("models: {}\n", "not a mapping"),
        ("model: []\n", "missing"),
        ("models: []\nmodels: []\n", "stands twice"),
        ("- name: a\n  source: /a\n", "of no known format"),
        ("just words", "text of no known format"),
        ("true", "true or false"),
    ],
)
def test_a_native_text_of_another_shape_is_no_document(text, what):
    error = failure("models.yaml", text)
    assert what in str(error)
    assert error.where.startswith("models.yaml")
    assert error.hint


def test_problems_are_listed_up_to_a_limit():
    document = parse("models.yaml", "models: [" + "1, " * 3_000 + "]")
    assert len(document.problems) == recognise.MAX_PROBLEMS + 1
    assert document.problems[-1].what == "2000 more problems are not listed"


# Michelangelo


def test_michelangelo_generation_1_as_recorded():
    document = parse_recorded("michelangelo-1")
    assert document.format is Format.MICHELANGELO
    entry = document.entries["fraud-2026-04"]
    assert entry.source == "s3://deploy-models/fraud-2026-04/"
    assert entry.where == "model-list.json: [0] (line 2)"
    assert entry.kind is None
    assert (entry.placements[0].phase, entry.owners) == ("", ())


def test_michelangelo_generation_2_as_recorded():
    document = parse_recorded("michelangelo-2")
    assert document.problems == ()
    assert list(document.entries) == ["fraud-2026-04", "fraud-2026-05"]
    shared, canary = document.entries.values()
    assert shared.owners == ("fraud-eu", "fraud-us")
    assert [place.phase for place in shared.placements] == ["serving", ""]
    assert canary.placements[0].canary_pod == "triton-fraud-server-6c9f7d9b8-abcde"


def test_michelangelo_reads_the_old_name_of_storage_path():
    document = parse("model-list.json", [{"name": "a", "s3_path": "s3://b/a/"}])
    assert document.entries["a"].source == "s3://b/a/"


def test_michelangelo_takes_empty_and_null_fields_as_left_out():
    item = {"name": "a", "storage_path": "s3://b/a/", "phase": "", "canary_pod": None, "new": 1}
    document = parse("model-list.json", [item])
    assert document.problems == ()
    assert document.entries["a"].placements[0].phase == ""


def test_michelangelo_warns_of_an_unknown_phase_and_a_canary_without_a_pod():
    document = parse(
        "model-list.json",
        [
            {"name": "a", "storage_path": "s3://b/a/", "phase": "soaking"},
            {"name": "b", "storage_path": "s3://b/b/", "phase": "canary"},
        ],
    )
    assert list(document.entries) == ["a", "b"]
    assert [one.name for one in document.problems] == [None, None]
    assert "'soaking' is unknown" in document.problems[0].what
    assert "no pod loads it" in document.problems[1].what


def test_michelangelo_reports_two_paths_of_one_name():
    document = parse(
        "model-list.json",
        [
            {"name": "a", "storage_path": "s3://b/1/"},
            {"name": "a", "storage_path": "s3://b/2/"},
        ],
    )
    assert document.entries["a"].source == "s3://b/1/"
    (problem,) = document.problems
    assert "another storage_path" in problem.what
    assert problem.where == "model-list.json: [1] (line 1)"


def test_michelangelo_spoiled_entries():
    document = parse(
        "model-list.json",
        [
            {"name": "a"},
            {"name": "b", "storage_path": "nowhere"},
            {"name": "c", "storage_path": "s3://b/c", "phase": 5},
            {"storage_path": "s3://b/d"},
            7,
            {"name": "e", "storage_path": "s3://b/e"},
        ],
    )
    assert list(document.entries) == ["e"]
    assert document.undecided == {"a", "b", "c"}
    assert document.incomplete


@pytest.mark.parametrize("text", ["", "{}", '{"models": []}', "null", "7", "[", "- a: 1"])
def test_a_model_list_of_another_shape_is_no_document(text):
    failure("model-list.json", text)


# lora-syncer


def test_lora_syncer_as_recorded():
    document = parse_recorded("lora-syncer")
    assert document.format is Format.LORA_SYNCER
    assert document.problems == ()
    first, second = document.entries.values()
    assert (first.name, first.base_model) == ("billing-v3", "Qwen/Qwen3-14B")
    assert (second.source, second.base_model) == ("example/refunds-v1", "Qwen/Qwen3-32B")
    assert first.kind is Kind.LORA
    assert first.passthrough
    assert document.absent == {"billing-v2"}


def syncer(exist: str = "", not_exist: str = "", **more: str) -> str:
    lines = [f"  {name}: {value}" for name, value in more.items()]
    lines += [
        f"  ensureExist: {{models: [{exist}]}}",
        f"  ensureNotExist: {{models: [{not_exist}]}}",
    ]
    return "\n".join(["vLLMLoRAConfig:", *lines])


def test_lora_syncer_skips_an_id_that_stands_in_both_lists():
    document = parse(
        "any.yaml", syncer("{id: a, source: x}, {id: b, source: y}", "{id: a}, {id: c}")
    )
    assert list(document.entries) == ["b"]
    assert document.absent == {"c"}
    assert document.undecided == {"a"}
    assert "left as it is" in whats(document)


def test_lora_syncer_takes_the_first_of_two_ids():
    document = parse("any.yaml", syncer("{id: a, source: x}, {id: a, source: y}"))
    assert document.entries["a"].source == "x"
    assert "stands twice" in whats(document)


def test_lora_syncer_spoiled_entries():
    document = parse("any.yaml", syncer("{id: a}, {id: b, source: y}"))
    assert (list(document.entries), set(document.undecided)) == (["b"], {"a"})
    for wrong in ("{id: 'a,b', source: x}", "{id: a/b, source: x}", "{source: x}", "7"):
        assert parse("any.yaml", syncer(wrong)).incomplete
        assert parse("any.yaml", syncer("", wrong)).incomplete


@pytest.mark.parametrize(
    "text",
    [
        "vLLMLoRAConfig:",
        "vLLMLoRAConfig: []",
        "vLLMLoRAConfig: {ensureExist: }",
        "vLLMLoRAConfig: {ensureExist: {}}",
        "vLLMLoRAConfig: {ensureExist: {models: }}",
        "vLLMLoRAConfig: {ensureNotExist: {models: {}}}",
        "vLLMLoRAConfig: {defaultBaseModel: 7}",
        "vLLMLoRAConfig: {}\nvLLMLoRAConfig: {}",
        "vLLMLoRAConfig: {",
        "vllmLoraConfig: {}",
    ],
)
def test_a_lora_syncer_text_of_another_shape_is_no_document(text):
    failure("any.yaml", text)


# KServe


def test_kserve_as_recorded():
    document = parse_recorded("kserve")
    assert document.format is Format.KSERVE
    assert document.problems == ()
    assert {name: one.source for name, one in document.entries.items()} == {
        "basket": "s3://shop/models/basket",
        "churn": "gs://shop/churn/v2",
    }
    assert document.entries["churn"].kind is None


def kserve(name: object, uri: object) -> dict[str, object]:
    return {"modelName": name, "modelSpec": {"storageUri": uri, "framework": "x", "memory": "1G"}}


def test_kserve_takes_the_last_of_two_names():
    document = parse("models.json", [kserve("a", "s3://b/1"), kserve("a", "http://b/2")])
    assert document.entries["a"].source == "http://b/2"
    assert "the last one is taken" in whats(document)


def test_kserve_spoiled_entries():
    items = [kserve("a", 7), {"modelName": "b"}, {"modelName": "c", "modelSpec": None}]
    document = parse("models.json", [*items, kserve("d", "s3://b/d")])
    assert (list(document.entries), set(document.undecided)) == (["d"], {"a", "b", "c"})
    assert not document.incomplete
    assert "modelSpec.storageUri" in whats(document)
    assert parse("models.json", [kserve(7, "s3://b/a"), kserve("a", "s3://b/a"), 7]).incomplete


# Telling them apart


def test_lists_are_told_by_their_entries_whatever_the_key():
    michelangelo = [{"name": "a", "storage_path": "s3://b/a"}]
    assert parse("models.json", michelangelo).format is Format.MICHELANGELO
    assert parse("other.json", michelangelo).format is Format.MICHELANGELO
    assert parse("model-list.json", [kserve("a", "s3://b/a")]).format is Format.KSERVE


def test_one_bad_entry_does_not_turn_a_list_into_another_format():
    items = [kserve("x", "s3://b/x"), *({"name": n, "storage_path": "s3://b/a"} for n in "ab")]
    document = parse("model-list.json", items)
    assert document.format is Format.MICHELANGELO
    assert document.incomplete


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("README.md", "vLLMLoRAConfig: {}"),
        ("notes.yaml", "models: []"),
        ("notes.yaml", "# see vLLMLoRAConfig:\na: ["),
        ("notes.json", "[]"),
        ("notes.json", '{"models": [{"storage_path": 1}]}'),
        ("configmap.yaml", "a: 1"),
        ("logo.png", "\x00"),
    ],
)
def test_other_keys_are_ignored(key, text):
    assert parse_document(key, text) is None


def test_a_key_that_was_asked_for_must_be_a_document():
    assert parse("notes.yaml", native("name: a, source: /a"), expected=True).format is Format.NATIVE
    assert "of no known format" in str(failure("notes.yaml", "a: 1", expected=True))
    assert "of no known format" in str(failure("notes.txt", "words", expected=True))


def test_what_the_key_alone_tells():
    assert [key for key in ("models.json", "model-list.json", "a.yaml") if is_known_key(key)] == [
        "models.json",
        "model-list.json",
    ]
    assert format_of_key("model-list.json") is Format.MICHELANGELO
    assert format_of_key("configmap.yaml") is Format.LORA_SYNCER
    assert format_of_key("models.yml") is Format.NATIVE
    assert format_of_key("models.json") is None
    assert format_of_key("other") is None
