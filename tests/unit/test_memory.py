"""What is remembered over the agent's own restart, as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.desired import DropOut
from sidecar.core.memory import Held, Latch, Memory, Owned, anew, from_json, to_json

seconds = st.floats(0, 1e10)
names = st.text(min_size=1, max_size=5)
counts = st.integers(0, 1000)
latches = st.builds(
    Latch,
    incarnation=counts,
    first_answer_at=st.none() | seconds,
    gating=st.none() | st.frozensets(names),
    passed=st.booleans(),
    served=st.booleans(),
    document_seen=st.booleans(),
)
memories = st.builds(
    Memory,
    documents=st.dictionaries(names, st.text()),
    generation=counts,
    observed_generation=counts,
    accepted_at=st.none() | seconds,
    owned=st.dictionaries(
        names,
        st.builds(
            Owned,
            drop_out=st.sampled_from(DropOut),
            grace_seconds=seconds,
            dropped_at=st.none() | seconds,
        ),
    ),
    held=st.dictionaries(names, st.builds(Held, path=st.text(), parameters=st.text())),
    retired=st.dictionaries(st.text(), seconds),
    incarnation=counts,
    started_at=st.none() | seconds,
    latch=latches,
    failing=st.frozensets(names),
)


@given(memory=memories)
def test_a_memory_survives_json(memory):
    assert from_json(json.loads(json.dumps(to_json(memory)))) == memory


def damaged(**changes):
    """Return the JSON of an empty memory with other values in it."""
    return {**to_json(Memory()), **changes}


@pytest.mark.parametrize(
    "value",
    [
        {},
        damaged(version=2),
        damaged(owned={"a": ["unload"]}),
        damaged(owned={"a": ["sometimes", 0.0, None]}),
        damaged(held=[]),
        damaged(latch=None),
        damaged(generation="many"),
        [],
    ],
)
def test_anything_else_is_refused_with_one_error(value):
    with pytest.raises(ValueError, match=r"."):
        from_json(value)


def test_without_memory_whatever_lies_on_disk_may_be_read_again():
    assert anew(["/a", "/b"], 5.0) == Memory(retired={"/a": 5.0, "/b": 5.0})


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": float("inf")},
        {"observed_generation": float("inf")},
        {"started_at": "x"},
        {"accepted_at": float("nan")},
        {"retired": {"/store/x": 10**400}},
        {"owned": {"a": ["unload", 0.0, "soon"]}},
    ],
)
def test_a_number_that_is_none_is_damage(changes):
    with pytest.raises(ValueError, match="damaged"):
        from_json(to_json(Memory()) | changes)
