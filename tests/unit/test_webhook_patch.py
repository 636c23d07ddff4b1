"""The difference of two objects, as a JSON patch that gives the one from the other."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cluster.webhook.patch import diff
from tests.support.json_patch import apply_patch

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, 1.0, 0.5])
    | st.text("a~/", max_size=2)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("a~/1", max_size=2), inner),
    max_leaves=12,
)


def text(value):
    """What JSON sees: true is not 1."""
    return json.dumps(value, sort_keys=True)


@given(VALUES, VALUES)
def test_a_patch_gives_the_one_from_the_other(before, after):
    patch = json.loads(json.dumps(list(diff(before, after))))
    assert text(apply_patch(copy.deepcopy(before), patch)) == text(after)


@given(VALUES)
def test_what_is_the_same_needs_no_patch(value):
    assert list(diff(value, copy.deepcopy(value))) == []


@pytest.mark.parametrize(("before", "after"), [(True, 1), (0, False), ([1], [True]), ({}, [])])
def test_values_that_only_python_takes_for_the_same_are_told_apart(before, after):
    patch = [dict(one) for one in diff({"a": before}, {"a": after})]
    assert text(apply_patch({"a": before}, patch)) == text({"a": after})
    assert patch


def test_only_what_differs_is_named():
    before = {"spec": {"containers": [{"name": "a", "env": []}], "hostNetwork": True}}
    after = {"spec": {"containers": [{"name": "a", "env": [{"name": "X"}]}]}}
    assert list(diff(before, after)) == [
        {"op": "remove", "path": "/spec/hostNetwork"},
        {"op": "add", "path": "/spec/containers/0/env/-", "value": {"name": "X"}},
    ]
