"""ConfigMaps with documents: what is refused, what is only told, what passes."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cluster.webhook.documents import review_configmap
from sidecar.cluster.webhook.review import (
    MAX_MESSAGE_CHARS,
    MAX_WARNING_CHARS,
    MAX_WARNINGS_CHARS,
    BadReview,
    parse_review,
    problem_line,
)
from sidecar.core.desired import Problem
from tests.support.admission import admission, configmap
from tests.support.documents import recorded

GOOD = "models:\n- {name: sql, source: s3://adapters/sql/}\n"
BROKEN = """\
models:
- {name: sql, source: s3://adapters/sql/, digset: x}
- {name: "a,b", source: s3://adapters/sql/}
- {name: chat, source: ftp://adapters/chat}
"""
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def verdict(data, *, old=None, operation="CREATE", **more):
    before = None if old is None else configmap(old)
    review = admission(configmap(data, **more), operation=operation, old=before)
    return review_configmap(parse_review(json.dumps(review).encode()))


def update(data, old):
    return verdict(data, old=old, operation="UPDATE")


def list_of(*entries):
    """A model list as Go marshals it: two blanks, and HTML's signs escaped."""
    text = json.dumps(list(entries), indent=2, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return {"model-list.json": text}


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE"])
def test_a_broken_document_is_refused_with_every_place(operation):
    found = verdict({"models.yaml": BROKEN}, operation=operation, old={"models.yaml": GOOD})
    assert not found.allowed
    for place in ("models[0].digset (line 2)", "models[1].name (line 3)", "models[2].source"):
        assert f"models.yaml: {place}" in found.message
    assert "did you mean digest?" in found.message


def test_all_keys_are_told_at_once():
    found = verdict({"models.yaml": BROKEN, "configmap.yaml": "vLLMLoRAConfig: [1]\n"})
    assert "models.yaml: models[0]" in found.message
    assert "configmap.yaml" in found.message


def test_a_text_that_is_no_document_at_all_is_refused():
    assert "models.yaml" in verdict({"models.yaml": "models: [unclosed\n"}).message


def test_two_documents_of_one_name_are_refused():
    assert "models.yml" in verdict({"models.yaml": GOOD, "models.yml": GOOD}).message


def test_binary_data_is_read_too():
    encoded = base64.b64encode(BROKEN.encode()).decode()
    assert "digset" in verdict(None, binaryData={"models.yaml": encoded}).message
    found = verdict(None, binaryData={"models.yaml": base64.b64encode(b"\xff").decode()})
    assert "models.yaml: it is not UTF-8" in found.message
    assert verdict(None, binaryData={"logo.png": base64.b64encode(b"\xff").decode()}).allowed


@pytest.mark.parametrize(
    "data",
    [None, {}, {"models.yaml": GOOD}, {"models.yaml": "models: []\n"}, {"app.conf": "[broken"}],
)
def test_good_documents_and_what_is_none_pass_without_a_word(data):
    found = verdict(data)
    assert found.allowed
    assert found.warnings == ()


@pytest.mark.parametrize("operation", ["DELETE", "CONNECT"])
def test_only_writes_are_looked_at(operation):
    review = admission(None, operation=operation, old=configmap({"models.yaml": BROKEN}))
    assert review_configmap(parse_review(json.dumps(review).encode())).allowed


def test_another_kind_is_no_question_for_it():
    review = admission({"kind": "Secret"})
    with pytest.raises(BadReview, match="Secret"):
        review_configmap(parse_review(json.dumps(review).encode()))


def test_what_was_broken_before_and_is_not_touched_is_a_warning():
    found = update({"models.yaml": BROKEN, "notes": "x"}, {"models.yaml": BROKEN})
    assert found.allowed
    assert any("digset" in one for one in found.warnings)
    other = {"models.yaml": BROKEN, "models.yml": "models: [x]\n"}
    found = update(other, {"models.yaml": BROKEN})
    assert "models.yml" in found.message
    assert "digset" not in found.message


def test_a_long_refusal_is_bounded_and_says_how_much_is_left_out():
    entries = "".join(f"- {{name: m{n}, source: ftp://x/{'y' * 60}}}\n" for n in range(900))
    found = verdict({"models.yaml": "models:\n" + entries})
    assert len(found.message) <= MAX_MESSAGE_CHARS + 40
    listed = sum(line.startswith("- models.yaml") for line in found.message.splitlines())
    assert found.message.endswith(f"- and {900 - listed} more")


def test_warnings_are_bounded_as_the_api_server_wants_them():
    entries = [{"name": "a," * 100 + str(n), "storage_path": "s3://m/x/"} for n in range(900)]
    found = verdict(list_of(*entries))
    assert found.allowed
    assert all(len(one) <= MAX_WARNING_CHARS for one in found.warnings)
    assert sum(map(len, found.warnings)) <= MAX_WARNINGS_CHARS
    assert found.warnings[-1].endswith("more")


def test_no_text_of_a_document_can_steer_a_terminal():
    found = verdict({"models.yaml": 'models:\n- {"bad\\u001b[2J": 1}\n'})
    assert not found.allowed
    assert all(one.isprintable() for one in found.message.splitlines())
    assert problem_line(Problem(where="a", what="b\x1b[2J\nc")).isprintable()


@pytest.mark.parametrize("generation", [1, 2])
def test_what_michelangelo_wrote_passes_without_a_word(generation):
    found = verdict(recorded(f"michelangelo-{generation}"))
    assert found.allowed
    assert found.warnings == ()


@pytest.mark.parametrize(
    "data",
    [
        None,
        list_of(),
        {"model-list.json": "null"},
        list_of({"name": "m", "storage_path": ""}),
        list_of({"name": "m", "s3_path": "s3://m/x/"}),
        list_of({"name": "m", "storage_path": "ftp://m/x/"}),
        list_of(
            {"name": "m", "storage_path": "s3://m/1/", "deployment_name": "a"},
            {"name": "m", "storage_path": "s3://m/2/", "deployment_name": "b"},
        ),
        list_of({"name": "m", "storage_path": "s3://m/1/", "phase": "canary"}),
        list_of({"name": "m", "storage_path": "s3://m/1/", "phase": "paused", "shards": [1]}),
    ],
)
def test_whatever_michelangelos_controller_can_write_passes(data):
    assert verdict(data).allowed


def optional(**fields):
    return st.fixed_dictionaries({}, optional=fields)


@given(
    st.lists(
        st.tuples(
            st.fixed_dictionaries({"name": TEXTS, "storage_path": TEXTS}),
            optional(
                deployment_name=TEXTS,
                phase=TEXTS | st.sampled_from(["canary", "staged", "serving"]),
                canary_pod=TEXTS,
            ),
        )
    ),
    st.sampled_from([None, GOOD, BROKEN, 'models:\n- {name: "", source: /x}\n']),
)
def test_every_text_of_its_fields_passes_beside_documents_of_others(entries, other):
    """Also when somebody else's key in the same ConfigMap is broken, or claims the same names."""
    data = list_of(*({**always, **sometimes} for always, sometimes in entries))
    old = {} if other is None else {"models.yaml": other}
    assert update({**data, **old}, old).allowed
    if other in (None, GOOD):
        names = [always["name"] for always, _ in entries]
        if "sql" not in names:
            assert verdict({**data, **old}).allowed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        '["m"]',
        '[{"name": "m"}]',
        '[{"name": 1, "storage_path": "s3://m/1/"}]',
        '[{"name": "m", "name": "n", "storage_path": "s3://m/1/"}]',
        '[{"name": "m", "storage_path": "s3://m/1/", "phase": {}}]',
    ],
)
def test_what_michelangelos_controller_cannot_write_or_read_is_refused(text):
    assert "model-list.json" in verdict({"model-list.json": text}).message


def test_a_person_who_claims_a_name_of_the_model_list_is_refused():
    data = list_of({"name": "sql", "storage_path": "s3://m/1/"})
    assert not update({**data, "models.yaml": GOOD}, data).allowed
    assert update({**data, "models.yaml": GOOD}, {"models.yaml": GOOD}).allowed


def test_what_kserves_controller_can_write_passes():
    spec = {"storageUri": "pvc://m", "framework": "sklearn", "memory": "1Gi"}
    text = json.dumps([{"modelName": "a b,", "modelSpec": spec}], separators=(",", ":"))
    found = verdict({"models.json": text})
    assert found.allowed
    assert found.warnings
    assert verdict({"models.json": "[]"}).allowed
    assert not verdict({"models.json": '[{"modelName": "a", "modelSpec": "x"}]'}).allowed
