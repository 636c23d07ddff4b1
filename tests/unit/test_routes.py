"""Routes and documents that do not fit each other, each with its place."""

import json
import re
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cluster.routes import Object, check_routes
from sidecar.core.documents import parse_document
from sidecar.core.documents.text import parse_text

AIGW = "aigateway.envoyproxy.io/v1beta1"
LLM_D = "llm-d.ai/v1alpha2"
X_K8S = "inference.networking.x-k8s.io/v1alpha2"
NAMES = st.text(alphabet="abcxyz-.0", min_size=1, max_size=8).filter(
    lambda name: not name.startswith(".")
)


def lora(name, **more):
    return {"name": name, "kind": "lora", "source": f"/{name}", **more}


def parsed(key, text):
    document = parse_document(key, text)
    assert document is not None
    return document


def native(*entries):
    document = parsed("models.yaml", json.dumps({"models": entries}))
    assert not document.problems
    return document


def route(kind, version, spec, file="routes.yaml"):
    content = {"apiVersion": version, "kind": kind, "metadata": {"name": "it"}, "spec": spec}
    return Object(file=file, node=parse_text(file, json.dumps(content)))


def rewrite(*targets, matches=None, version=LLM_D):
    rule = {"targets": [{"modelRewrite": name} for name in targets]}
    if matches is not None:
        rule["matches"] = [{"model": {"value": name}} for name in matches]
    return route("InferenceModelRewrite", version, {"rules": [rule]})


def gate(*headers):
    matches = [{"headers": [header]} for header in headers]
    return route("AIGatewayRoute", AIGW, {"rules": [{"matches": matches}]})


def exact(value, name="x-ai-eg-model"):
    return {"name": name, "value": value}


def expression(value):
    return {"type": "RegularExpression", "name": "x-ai-eg-model", "value": value}


def problems_of(documents, objects):
    found = check_routes(documents, objects)
    assert not found.warnings
    return found.problems


def said(documents, *objects):
    return [problem.what for problem in problems_of(documents, objects)]


def test_target_in_any_document_is_no_problem():
    documents = [native(lora("a")), native(lora("b"))]
    assert said(documents, rewrite("a", "b")) == []


def test_target_in_no_document_is_told_with_object_path_and_what_was_meant():
    (problem,) = problems_of([native(lora("billing-v4"))], [rewrite("billing-v4", "biling-v4")])
    place = "InferenceModelRewrite it: spec.rules[0].targets[1].modelRewrite (line 1)"
    assert problem.where == f"routes.yaml: {place}"
    assert problem.what == "'biling-v4' is in no document"
    assert problem.hint == "did you mean 'billing-v4'?"


def test_base_model_of_an_entry_is_there_by_itself():
    documents = [native(lora("a", base_model="org/base"))]
    assert said(documents, rewrite("org/base")) == []
    (problem,) = problems_of(documents, [rewrite("elsewhere")])
    assert "base_model" in problem.hint


def test_target_that_shall_not_be_loaded_is_a_problem():
    text = "vLLMLoRAConfig: {ensureNotExist: {models: [{id: old, source: /old}]}}"
    document = parsed("configmap.yaml", text)
    assert said([document], rewrite("old")) == ["the documents say that 'old' shall not be loaded"]


def test_target_whose_entry_is_spoiled_is_not_reported_twice():
    document = parsed("models.yaml", "models: [{name: a, source: relative}]")
    assert document.problems
    assert said([document], rewrite("a")) == []


@pytest.mark.parametrize("version", [LLM_D, X_K8S])
def test_rewrites_of_both_groups_are_read(version):
    assert said([native()], rewrite("a", version=version)) == ["'a' is in no document"]


@pytest.mark.parametrize("version", [X_K8S, "inference.networking.x-k8s.io/v1alpha1"])
def test_legacy_model_leads_to_its_targets_or_to_itself(version):
    split = {"modelName": "chat", "targetModels": [{"name": "a"}, {"name": "b"}]}
    plain = {"modelName": "chat"}
    documents = [native(lora("a"))]
    (problem,) = problems_of(documents, [route("InferenceModel", version, split)])
    assert "spec.targetModels[1].name" in problem.where
    (problem,) = problems_of(documents, [route("InferenceModel", version, plain)])
    assert "spec.modelName" in problem.where


def test_kind_of_another_group_is_no_route():
    assert not route("InferenceModel", "example.com/v1", {}).kind
    assert not route("Deployment", "apps/v1", {}).kind


@pytest.mark.parametrize(
    "header",
    [
        exact("support-a"),
        exact("support-a", name="X-AI-EG-Model"),
        expression("support-.*"),
        expression(r"support-[[:alpha:]]\z"),
    ],
)
def test_lora_that_a_rule_matches_is_reached(header):
    assert said([native(lora("support-a"))], gate(header)) == []


@pytest.mark.parametrize(
    "header",
    [exact("support"), exact("x", "X-AI-EG-Model"), expression("support"), expression("a")],
)
def test_lora_that_no_rule_matches_whole_is_told_at_its_entry(header):
    (problem,) = problems_of([native(lora("support-a"))], [gate(header)])
    assert problem.where == "models.yaml: models[0] (line 1)"
    assert problem.what == "no rule of an AIGatewayRoute leads to 'support-a': its clients get 404"


def test_loras_are_not_looked_for_without_a_gateway():
    assert said([native(lora("a"))], rewrite("a")) == []


@pytest.mark.parametrize("rules", [[{}], [{"matches": [{"headers": [exact("b", name="x-team")]}]}]])
def test_rule_without_a_model_takes_every_model(rules):
    assert said([native(lora("a"))], route("AIGatewayRoute", AIGW, {"rules": rules})) == []


def test_gateway_without_rules_takes_nothing():
    assert len(said([native(lora("a"))], route("AIGatewayRoute", AIGW, {"rules": []}))) == 1


def test_model_needs_no_rule_and_an_entry_of_unknown_kind_is_told_what_to_say():
    document = native({"name": "m", "kind": "model", "source": "/m"})
    assert said([document], gate(exact("b"))) == []
    (problem,) = problems_of([native({"name": "m", "source": "/m"})], [gate(exact("b"))])
    assert "kind: model" in problem.hint
    triton = parsed("model-list.json", '[{"name": "m", "storage_path": "s3://b/m/"}]')
    assert said([triton], gate(exact("b"))) == []


def test_lora_behind_a_rewrite_is_reached_by_the_name_that_clients_use():
    documents = [native(lora("v3"), lora("v4"))]
    split = rewrite("v3", "v4", matches=["chat"])
    assert said(documents, split, gate(exact("chat"))) == []
    assert len(said(documents, split, gate(exact("other")))) == 2
    assert said(documents, rewrite("v3", "v4"), gate(exact("anything"))) == []


@pytest.mark.parametrize("value", ["(", "a{2,1}"])
def test_expression_that_cannot_be_read_is_told_and_may_match_anything(value):
    (problem,) = problems_of([native(lora("a"))], [gate(expression(value))])
    assert "spec.rules[0].matches[0].headers[0].value" in problem.where
    assert problem.what.startswith("the regular expression cannot be read")


@pytest.mark.parametrize("value", ["(?=a)a", "(?!b)a", "(?<=x)?a", r"(a)\1?"])
def test_expression_that_envoy_refuses_is_told(value):
    assert "which Envoy refuses" in said([native()], gate(expression(value)))[0]


@pytest.mark.parametrize("value", [r"a\\1", "(?:a)", "(?i)a", "(?P<n>a)", r"\(?=a"])
def test_expression_that_envoy_takes_is_no_problem(value):
    assert said([native()], gate(expression(value))) == []


RE2_ALONE = [
    r"\pL+-lora",
    r"\p{Greek}|a",
    r"[\pN]",
    r"\Qa.b\E",
    r"\Q(\E",
    r"\x{61}",
    "(?<name>b)",
    "b(?i)c",
    "(?U)b+",
    "[[:^alpha:]]",
]


@pytest.mark.parametrize("value", RE2_ALONE)
def test_expression_that_python_alone_does_not_know_is_a_warning_and_may_match_anything(value):
    found = check_routes([native(lora("a"))], [gate(expression(value))])
    assert found.problems == ()
    (warning,) = found.warnings
    place = "AIGatewayRoute it: spec.rules[0].matches[0].headers[0].value (line 1)"
    assert warning.where == f"routes.yaml: {place}"
    assert warning.what.startswith("the regular expression is RE2's alone: ")


def test_expression_nested_too_deep_is_a_warning():
    deep = "(" * 900 + "a" + ")" * 900
    found = check_routes([native(lora("a"))], [gate(expression(deep))])
    assert found.problems == ()
    assert [one.what for one in found.warnings] == ["the regular expression is nested too deep"]


def test_escaped_backslash_begins_nothing_of_re2():
    (problem,) = problems_of([native()], [gate(expression(r"\\pL("))])
    assert problem.what.startswith("the regular expression cannot be read")


def test_matching_without_end_is_ended_with_a_warning_at_its_expression():
    slow = "([a-z0-9]+-?)+"
    documents = [native(lora("b"), lora("x" * 60 + "."), lora("y" * 60 + "."))]
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    found = check_routes(documents, [gate(exact("b"), expression(slow))], match_seconds=0.2)
    assert 0.2 <= time.monotonic() - started < 5.0
    assert found.problems == ()
    (warning,) = found.warnings
    assert "spec.rules[0].matches[1].headers[0].value" in warning.where
    assert warning.what == "matching took longer than 0.2 s, and ended at this expression"
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_was_found_before_matching_ended_is_told():
    documents = [native(lora("A"), lora("x" * 60 + "."))]
    found = check_routes(documents, [gate(expression("([a-z0-9]+-?)+"))], match_seconds=0.2)
    assert len(found.problems) == len(found.warnings) == 1
    assert "leads to 'A'" in found.problems[0].what


@pytest.mark.parametrize("value", [None, 3, ""])
def test_target_without_a_name_is_told(value):
    one = route("InferenceModelRewrite", LLM_D, {"rules": [{"targets": [{"modelRewrite": value}]}]})
    assert said([native()], one) == ["modelRewrite must be text"]


def test_match_without_a_value_is_told_and_may_match_anything():
    assert said([native(lora("a"))], gate({"name": "x-ai-eg-model"})) == ["value must be text"]


@given(st.sets(NAMES), st.sets(NAMES), st.sets(NAMES))
def test_problems_are_exactly_what_does_not_fit(listed, targets, matched):
    documents = [native(*map(lora, sorted(listed)))]
    found = said(documents, rewrite(*targets, matches=[]), gate(*map(exact, sorted(matched))))
    # A rewrite of every request: its targets are reached as soon as anything is.
    reached = matched | (targets if matched else set())
    unknown, unreached = targets - listed, listed - reached
    if not matched:
        unreached = set()  # A match without headers is of everything.
    assert len(found) == len(unknown) + len(unreached)


@given(NAMES, st.sets(NAMES))
def test_quoted_names_as_expressions_match_as_exact_ones(name, matched):
    documents = [native(lora(name))]
    one = said(documents, gate(*map(exact, matched), exact("other/one")))
    other = said(documents, gate(*(expression(re.escape(m)) for m in matched), exact("other/one")))
    assert one == other


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["rules", "matches", "headers", "targets", "targetModels", "model", "value", "name"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=20,
)


@given(st.sampled_from(["AIGatewayRoute", "InferenceModelRewrite", "InferenceModel"]), JSON)
def test_whatever_an_object_holds_is_answered(kind, spec):
    version = {"AIGatewayRoute": AIGW, "InferenceModelRewrite": LLM_D}.get(kind, X_K8S)
    check_routes([native(lora("a"))], [route(kind, version, spec)])
