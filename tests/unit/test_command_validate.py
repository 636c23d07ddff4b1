"""``validate``: every problem with its place, in documents and in manifests."""

import base64
import io
import json
import sys
import textwrap
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli import main
from sidecar.commands.manifests import read_file_text
from sidecar.commands.validate import check, read_files

GOOD = "models:\n- name: a\n  source: /a\n- name: b\n  source: /b\n"
BAD = "models:\n- name: a\n  source: /a\n  digest: abc\n"
PIN = "not"
MANIFEST = """\
# Before it all
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: models
  namespace: chat
data:
  notes.txt: hello
  models.yaml: |
    models:
    - name: a
      source: /a
      digest: abc
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat}
"""


def write(directory, name, text):
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def validate(capsys, *argv):
    code = main(["validate", *argv])
    return code, capsys.readouterr().out.splitlines()


def test_good_documents_are_counted(tmp_path, capsys):
    file = write(tmp_path, "models.yaml", GOOD)
    assert validate(capsys, file) == (0, ["1 document, 2 entries, no problems"])


def test_problem_is_told_with_file_place_and_line(tmp_path, capsys):
    file = write(tmp_path, "models.yaml", BAD)
    code, (line, summary) = validate(capsys, file)
    assert code == 1
    assert line.startswith(f"{file}: models[0].digest (line 4): ")
    assert "write sha256: and the 64" in line
    assert summary == "1 document, 1 entry, 1 problem"


def test_every_problem_of_every_file_is_told(tmp_path, capsys):
    first = write(tmp_path, "models.yaml", BAD + "- nmae: b\n  source: /b\n")
    second = write(tmp_path, "model-list.json", "[{]")
    code, lines = validate(capsys, first, second)
    assert code == 1
    assert [line.split(": ")[0] for line in lines[:-1]].count(first) == 3
    assert any(line.startswith(f"{second} (line 1, column 3): it is no JSON") for line in lines)


def test_any_file_name_may_hold_a_document(tmp_path, capsys):
    file = write(tmp_path, "production", GOOD)
    assert validate(capsys, file)[0] == 0


def test_file_that_holds_no_document_is_a_problem(tmp_path, capsys):
    code, lines = validate(capsys, write(tmp_path, "values.yaml", "replicas: 3\n"))
    assert code == 1
    assert "no known format" in lines[0]


@pytest.mark.parametrize("make", ["missing", "directory", "binary"])
def test_file_that_cannot_be_read_is_a_problem_beside_the_others(make, tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    if make == "directory":
        bad.mkdir()
    elif make == "binary":
        bad.write_bytes(b"models: \xff")
    code, lines = validate(capsys, str(bad), write(tmp_path, "models.yaml", GOOD))
    assert code == 1
    assert lines[0].startswith(f"{bad}: it ")
    assert lines[1] == "1 document, 2 entries, 1 problem"


def test_names_that_two_files_claim_are_a_clash(tmp_path, capsys):
    first, second = (write(tmp_path, name, GOOD) for name in ("a.yaml", "b.yaml"))
    code, lines = validate(capsys, second, first)
    assert code == 1
    assert lines[0].startswith(f"{second}: models[0] (line 2): 'a' is also in {first}")
    assert len(lines) == 3


def test_file_named_twice_is_read_once(tmp_path, capsys):
    file = write(tmp_path, "models.yaml", GOOD)
    assert validate(capsys, file, file) == (0, ["1 document, 2 entries, no problems"])


def test_standard_input_is_read(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(BAD.encode())))
    code, lines = validate(capsys, "-")
    assert code == 1
    assert lines[0].startswith("standard input: models[0].digest (line 4): ")


def test_manifest_tells_configmap_key_and_the_line_in_the_file(tmp_path, capsys):
    file = write(tmp_path, "all.yaml", MANIFEST)
    code, (line, summary) = validate(capsys, file)
    assert code == 1
    assert line.startswith(
        f"{file}: configmap chat/models: models.yaml: models[0].digest (line 14)"
    )
    assert summary == "1 document, 1 entry, 1 problem"


def test_keys_of_one_configmap_clash_and_two_configmaps_do_not(tmp_path, capsys):
    one = {"models.yaml": GOOD, "model-list.json": '[{"name": "a", "storage_path": "s3://b/a"}]'}
    alone = {"models.yaml": GOOD}
    assert len(check(read_files([configmaps(tmp_path, "one.json", one)])).problems) == 1
    assert check(read_files([configmaps(tmp_path, "two.json", alone, alone)])).problems == ()
    files = [configmaps(tmp_path, name, alone) for name in ("three.json", "four.json")]
    assert check(read_files(files)).problems == ()


def configmaps(directory, name, *data):
    items = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"models-{number}"},
            "data": one,
        }
        for number, one in enumerate(data)
    ]
    (directory / name).write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
    )
    return str(directory / name)


def test_binary_data_is_decoded_as_the_agent_does(tmp_path):
    def manifest(encoded):
        return (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n"
            f"binaryData: {{models.yaml: {encoded}}}\n"
        )

    good = write(tmp_path, "good.yaml", manifest(base64.b64encode(GOOD.encode()).decode()))
    assert check(read_files([good])).problems == ()
    for encoded in ("'*'", base64.b64encode(b"\xff").decode()):
        (problem,) = check(read_files([write(tmp_path, "bad.yaml", manifest(encoded))])).problems
        assert problem.where.endswith("bad.yaml: configmap m: models.yaml (line 4)")


def test_manifest_without_a_document_is_a_problem(tmp_path, capsys):
    file = write(tmp_path, "pod.yaml", "apiVersion: v1\nkind: Pod\n")
    code, lines = validate(capsys, file)
    assert code == 1
    assert lines[0].startswith(f"{file}: no document is in it")


def test_broken_part_of_a_manifest_hides_no_other(tmp_path, capsys):
    file = write(tmp_path, "all.yaml", MANIFEST + "---\nkind: ]\n")
    code, lines = validate(capsys, file)
    assert code == 1
    assert any("models[0].digest (line 14)" in line for line in lines)
    assert any(line.startswith(f"{file} (line 20, column ") for line in lines)


def test_json_has_the_same(tmp_path, capsys):
    file = write(tmp_path, "all.yaml", MANIFEST)
    assert main(["validate", "--json", file]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is False
    assert told["documents"] == [
        {
            "file": file,
            "configmap": "chat/models",
            "key": "models.yaml",
            "format": "native",
            "entries": 1,
        }
    ]
    assert [set(one) for one in told["problems"]] == [{"where", "what", "hint"}]


def test_nothing_in_a_document_steers_the_terminal(tmp_path, capsys):
    escape = "\\e[2J\\u202e"
    file = write(tmp_path, "models.yaml", f'models:\n- "na{escape}me": x\n  source: /a\n')
    code, lines = validate(capsys, file)
    assert code == 1
    assert all(line.isprintable() for line in lines)
    assert any("x1b[2J" in line for line in lines)


@given(st.text(alphabet=st.sampled_from("-a: \n#[{|\"'%\t"), max_size=60))
def test_every_text_is_answered_with_documents_or_problems(text):
    found = read_file_text("x.yaml", "x.yaml", text)
    assert found.texts or found.problems or found.is_manifest


ROUTES = """\
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: canary, namespace: chat}
spec:
  poolRef: {name: pool}
  rules:
  - targets:
    - {modelRewrite: a, weight: 9}
    - {modelRewrite: c, weight: 1}
"""
GATE = """\
apiVersion: aigateway.envoyproxy.io/v1beta1
kind: AIGatewayRoute
metadata: {name: gate, namespace: chat}
spec:
  rules:
  - matches:
    - headers: [{name: x-ai-eg-model, value: a}]
"""


def test_routes_are_checked_against_all_documents(tmp_path, capsys):
    documents = write(tmp_path, "models.yaml", GOOD)
    rewrites, gate = write(tmp_path, "r.yaml", ROUTES), write(tmp_path, "g.yaml", GATE)
    code, lines = validate(capsys, documents, "--with", rewrites, "--with", gate)
    assert code == 1
    place = "InferenceModelRewrite chat/canary: spec.rules[0].targets[1].modelRewrite (line 9)"
    assert lines[0].startswith(f"{rewrites}: {place}: 'c' is in no document; ")
    assert lines[1].startswith(f"{documents}: models[1] (line 4): no rule of an AIGatewayRoute ")
    assert lines[2:] == ["1 document, 2 entries, 2 problems"]


def test_routes_that_lead_where_they_should_are_no_problem(tmp_path, capsys):
    both = write(tmp_path, "all.yaml", MANIFEST.replace("digest: abc", "kind: model") + "---\n")
    everything = tmp_path / "with.yaml"
    rewrite = ROUTES.replace("modelRewrite: c", "modelRewrite: a")
    everything.write_text(f"{GATE}---\n{rewrite}")
    assert validate(capsys, both, "--with", str(everything))[0] == 0


def test_expression_that_cannot_be_matched_is_a_warning_and_no_problem(tmp_path, capsys):
    documents = write(tmp_path, "models.yaml", GOOD)
    header = "{name: x-ai-eg-model, type: RegularExpression, value: '\\pL+-lora'}"
    gate = write(tmp_path, "g.yaml", GATE.replace("{name: x-ai-eg-model, value: a}", header))
    code, lines = validate(capsys, documents, "--with", gate)
    assert code == 0
    place = "AIGatewayRoute chat/gate: spec.rules[0].matches[0].headers[0].value (line 7)"
    assert lines[0].startswith(f"warning: {gate}: {place}: the regular expression is RE2's alone")
    assert lines[1:] == ["1 document, 2 entries, no problems, 1 warning"]
    assert main(["validate", "--json", documents, "--with", gate]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["valid"], told["problems"]) == (True, [])
    assert [set(one) for one in told["warnings"]] == [{"where", "what", "hint"}]


def test_one_stream_may_hold_documents_and_routes(capsys, monkeypatch):
    stream = f"{MANIFEST.replace('digest: abc', 'kind: lora')}---\n{GATE}".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stream)))
    assert validate(capsys, "-", "--with", "-") == (0, ["1 document, 1 entry, no problems"])


def test_routes_that_cannot_be_read_are_a_problem(tmp_path, capsys):
    documents = write(tmp_path, "models.yaml", GOOD)
    empty = write(tmp_path, "pod.yaml", "apiVersion: v1\nkind: Pod\n")
    broken = write(tmp_path, "broken.yaml", "kind: ]\n")
    missing = str(tmp_path / "missing.yaml")
    flags = [part for file in (empty, broken, missing) for part in ("--with", file)]
    code, lines = validate(capsys, documents, *flags)
    assert code == 1
    assert lines[0].startswith(f"{empty}: no route is in it")
    assert lines[1].startswith(f"{broken} (line 1, column 7): it is no YAML")
    assert lines[2].startswith(f"{missing}: it cannot be read")
