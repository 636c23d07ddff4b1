import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Kind
from sidecar.core.accept import KEPT_KEY, Accepted, AcceptOptions, Pod, accept, restore
from sidecar.core.desired import Desired, DropOut, Format, Readiness
from sidecar.core.documents import is_in_share, parse_document
from sidecar.core.snapshot import Snapshot
from sidecar.errors import DocumentError
from tests.support.documents import ABSENT, UNREADABLE, native, recorded, snapshot

POD = Pod(name="pod-1", uid="uid-1")
OPTIONS = AcceptOptions()


def take(
    previous: Accepted | None,
    files: dict[str, str] | Snapshot,
    *,
    pod: Pod = POD,
    options: AcceptOptions = OPTIONS,
) -> Accepted:
    """Accept, and check that writing it down and restoring it loses nothing."""
    shot = files if isinstance(files, Snapshot) else snapshot(files)
    accepted = accept(previous, shot, pod, options)
    stored = json.loads(json.dumps(accepted.last_good))
    generation = accepted.desired.generation if accepted.desired is not None else 1
    again = restore(stored, pod, options, generation=generation)
    assert without_problems(again.desired) == without_problems(accepted.desired)
    assert again.last_good == accepted.last_good
    # What was restored is no news when the same documents are read once more.
    renewed = accept(again, shot, pod, options)
    assert without_problems(renewed.desired) == without_problems(accepted.desired)
    return accepted


def without_problems(desired: Desired | None) -> Desired | None:
    return replace(desired, problems=(), elsewhere=frozenset()) if desired is not None else None


def desired(accepted: Accepted) -> Desired:
    assert accepted.desired is not None
    return accepted.desired


def sources(accepted: Accepted) -> dict[str, str]:
    return {name: entry.source for name, entry in desired(accepted).entries.items()}


def whats(accepted: Accepted) -> str:
    return "\n".join(f"{one.where} | {one.what} | {one.hint}" for one in accepted.problems)


def lora(name: str, source: str, more: str = "") -> str:
    return f"name: {name}, source: {source}" + (f", {more}" if more else "")


# A first read


@pytest.mark.parametrize(
    "name", ["native", "michelangelo-1", "michelangelo-2", "lora-syncer", "kserve"]
)
def test_recorded_configmaps_are_accepted(name):
    accepted = take(None, recorded(name))
    assert accepted.valid
    assert not accepted.absent
    assert accepted.problems == ()
    assert desired(accepted).generation == 1
    assert len(desired(accepted).digest) == 64
    assert desired(accepted).entries
    assert accepted.last_good == recorded(name)


def test_an_absent_document_desires_nothing_and_is_no_fault():
    accepted = take(None, ABSENT)
    assert (accepted.desired, accepted.absent, accepted.valid) == (None, True, True)
    assert accepted.problems == ()


def test_a_configmap_without_a_document_is_absent():
    accepted = take(None, {"notes.txt": "words"})
    assert (accepted.desired, accepted.absent, accepted.valid) == (None, True, True)


def test_an_unreadable_source_is_not_absent():
    accepted = take(None, UNREADABLE)
    assert (accepted.desired, accepted.absent, accepted.valid) == (None, False, False)
    assert "I/O error" in whats(accepted)


def test_an_invalid_document_is_not_absent_and_its_key_tells_the_format():
    accepted = take(None, {"model-list.json": "["})
    assert (accepted.desired, accepted.absent, accepted.valid) == (None, False, False)
    assert accepted.formats_seen == {Format.MICHELANGELO}
    assert "model-list.json (line 1, column 2)" in whats(accepted)
    assert take(None, {"models.yaml": "["}).formats_seen == {Format.NATIVE}


def test_an_unreadable_key_is_not_absent():
    accepted = take(None, replace(snapshot({}), unreadable={"models.json": "no UTF-8"}))
    assert (accepted.desired, accepted.absent, accepted.valid) == (None, False, False)
    assert "no UTF-8" in whats(accepted)


def test_an_unreadable_key_of_no_concern_is_ignored():
    accepted = take(None, replace(snapshot({}), unreadable={"logo.png": "no UTF-8"}))
    assert (accepted.absent, accepted.valid) == (True, True)


def test_an_explicit_empty_list_is_accepted_and_empties():
    first = take(None, {"models.yaml": native(lora("a", "/a"))})
    emptied = take(first, {"models.yaml": native()})
    assert desired(emptied).entries == {}
    assert desired(emptied).generation == 2
    assert emptied.valid
    assert not emptied.absent


# Unknown is not empty


GOOD = {"models.yaml": native(lora("a", "/a"), lora("b", "/b"))}


@pytest.mark.parametrize(
    ("read", "what", "absent"),
    [
        (ABSENT, "nothing here any more: no such directory", True),
        (UNREADABLE, "cannot be read: I/O error", False),
        (snapshot({}), "the key is gone", True),
        (replace(snapshot({}), unreadable={"models.yaml": "no UTF-8"}), "no UTF-8", False),
        (snapshot({"models.yaml": "models: ["}), "it is no YAML", False),
        (snapshot({"models.yaml": ""}), "no known format", False),
        (snapshot({"models.yaml": "7"}), "no known format", False),
        (snapshot({"models.yaml": "models:\n"}), "not nothing", False),
        (snapshot({"models.yaml": "x" * 2_000_000}), "longer than", False),
    ],
)
def test_what_is_unknown_keeps_the_last_good(read, what, absent):
    first = take(None, GOOD)
    kept = take(first, read)
    assert without_problems(kept.desired) == without_problems(first.desired)
    assert kept.last_good == {**GOOD, **_vanished_note(kept)}
    assert not kept.valid
    assert kept.absent is absent
    assert what in whats(kept)
    assert desired(kept).problems == kept.problems
    mended = take(kept, {"models.yaml": native(lora("a", "/a2"))})
    assert sources(mended) == {"a": "/a2"}
    assert mended.valid
    assert desired(mended).generation == 2


def _vanished_note(accepted: Accepted) -> dict[str, str]:
    return {KEPT_KEY: accepted.last_good[KEPT_KEY]} if KEPT_KEY in accepted.last_good else {}


def test_a_document_that_became_something_else_keeps_the_last_good():
    files = {"any.yaml": "vLLMLoRAConfig: {ensureExist: {models: [{id: a, source: x}]}}"}
    first = take(None, files)
    kept = take(first, {"any.yaml": "something: else"})
    assert without_problems(kept.desired) == without_problems(first.desired)
    assert "no known format" in whats(kept)
    emptied = take(kept, {"any.yaml": "[]"})
    assert desired(emptied).entries == {}


def test_one_broken_key_leaves_the_others_alone():
    files = {"models.yaml": native(lora("a", "/a")), **recorded("michelangelo-1")}
    first = take(None, files)
    second = take(first, {**files, "models.yaml": native(lora("a", "/a2")), "model-list.json": "["})
    assert sources(second) == {"fraud-2026-04": "s3://deploy-models/fraud-2026-04/", "a": "/a2"}
    assert not second.valid
    assert desired(second).formats == (Format.MICHELANGELO, Format.NATIVE)


def test_a_key_that_vanished_is_kept_and_the_problem_says_how_to_empty_it():
    files = {"models.yaml": native(lora("a", "/a")), "models.yml": native(lora("b", "/b"))}
    second = take(take(None, files), {"models.yml": files["models.yml"]})
    assert sources(second) == {"b": "/b", "a": "/a"}
    assert "models.yaml | the key is gone" in whats(second)
    assert "write an empty list" in whats(second)
    emptied = take(second, {**files, "models.yaml": native()})
    assert sources(emptied) == {"b": "/b"}


def test_names_that_move_to_another_key_do_not_clash_with_the_vanished_one():
    first = take(None, {"models.yaml": native(lora("a", "/a"), lora("b", "/b"))})
    half = take(first, {"models.yml": native(lora("b", "/b2"))})
    assert sources(half) == {"b": "/b2", "a": "/a"}
    assert not half.valid
    # While nothing can be read, the vanished key wins nothing back.
    assert sources(take(half, UNREADABLE)) == sources(half)
    assert sources(take(half, ABSENT)) == sources(half)
    assert sources(take(half, {"models.yml": "["})) == sources(half)
    assert sources(take(half, {"models.yaml": "[", "models.yml": native(lora("b", "/b2"))})) == (
        sources(half)
    )
    moved = take(half, {"models.yml": native(lora("b", "/b2"), lora("a", "/a"))})
    assert sources(moved) == {"b": "/b2", "a": "/a"}
    assert moved.valid
    assert list(moved.last_good) == ["models.yml"]


def test_a_vanished_document_that_asked_for_nothing_is_no_fault():
    empty = take(None, {"models.yaml": native()})
    gone = take(empty, {})
    assert gone.valid
    assert desired(gone).generation == 1
    other = take(gone, {"models.yml": native(lora("a", "/a"))})
    assert list(other.last_good) == ["models.yml"]
    assert take(empty, ABSENT).valid


# Spoiled entries


def test_a_spoiled_entry_stays_as_it_was_and_blocks_nobody():
    first = take(None, GOOD)
    second = take(
        first, {"models.yaml": native(lora("a", "nowhere"), lora("b", "/b2"), lora("c", "/c"))}
    )
    assert sources(second) == {"a": "/a", "b": "/b2", "c": "/c"}
    assert desired(second).undecided == {"a"}
    assert second.valid
    third = take(second, {"models.yaml": native(lora("a", "still-nowhere"), lora("c", "/c2"))})
    assert sources(third) == {"a": "/a", "c": "/c2"}
    removed = take(third, {"models.yaml": native(lora("c", "/c2"))})
    assert sources(removed) == {"c": "/c2"}
    assert desired(removed).undecided == frozenset()


def test_a_spoiled_entry_that_was_never_good_is_undecided_alone():
    accepted = take(None, {"models.yaml": native(lora("a", "nowhere"), lora("b", "/b"))})
    assert sources(accepted) == {"b": "/b"}
    assert desired(accepted).undecided == {"a"}


def test_an_entry_without_a_name_keeps_every_name_of_its_document():
    files = {**GOOD, "models.yml": native(lora("z", "/z"))}
    first = take(None, files)
    second = take(
        first, {"models.yaml": native(lora("b", "/b"), "source: /a"), "models.yml": native()}
    )
    assert sources(second) == {"b": "/b", "a": "/a"}
    assert desired(second).incomplete
    third = take(
        second, {"models.yaml": native("source: /a"), "models.yml": native(lora("b", "/n"))}
    )
    assert sources(third) == {"a": "/a", "b": "/n"}
    mended = take(third, {"models.yaml": native(lora("c", "/c")), "models.yml": native()})
    assert sources(mended) == {"c": "/c"}
    assert not desired(mended).incomplete


def test_a_spoiled_canary_stays_elsewhere():
    item = {"name": "a", "storage_path": "s3://b/a", "phase": "canary", "canary_pod": "other"}
    first = take(None, {"model-list.json": json.dumps([item])})
    assert desired(first).elsewhere == {"a"}
    second = accept(first, snapshot({"model-list.json": json.dumps([{"name": "a"}])}), POD, OPTIONS)
    assert desired(second).elsewhere == {"a"}
    assert desired(second).undecided == {"a"}
    # Beside a good entry that is not for this pod either.
    both = take(second, {"model-list.json": json.dumps([item, {"name": "a"}])})
    assert desired(both).elsewhere == desired(both).undecided == {"a"}


def test_a_spoiled_entry_beside_a_good_one_of_the_same_name():
    good = {"name": "a", "storage_path": "s3://b/a"}
    first = take(None, {"model-list.json": json.dumps([good, {"name": "a"}])})
    assert sources(first) == {"a": "s3://b/a"}
    assert desired(first).undecided == frozenset()
    moved = {"name": "a", "storage_path": "s3://b/2"}
    second = take(first, {"model-list.json": json.dumps([moved, {"name": "a"}])})
    assert sources(second) == {"a": "s3://b/a"}
    assert desired(second).undecided == {"a"}


# Several documents


def test_two_documents_that_claim_a_name():
    files = {
        "models.yaml": native(lora("a", "/yaml")),
        "models.yml": native(lora("a", "/yml"), lora("b", "/b")),
        "x.yaml": "vLLMLoRAConfig: {ensureNotExist: {models: [{id: b}]}}",
    }
    accepted = take(None, files)
    assert sources(accepted) == {"a": "/yaml", "b": "/b"}
    assert desired(accepted).absent == frozenset()
    first, second = accepted.problems
    assert (first.name, first.conflict) == ("a", True)
    assert first.where == "models.yml: models[0] (line 2)"
    assert "models.yaml" in first.what
    assert (second.name, second.where) == ("b", "x.yaml")


# Generation and digest


def test_the_generation_grows_with_the_text_and_with_nothing_else():
    first = take(None, GOOD)
    assert desired(take(first, GOOD)).generation == 1
    blanks = take(first, {"models.yaml": GOOD["models.yaml"] + "\n"})
    assert desired(blanks).generation == 2
    assert desired(blanks).digest != desired(first).digest
    back = take(blanks, GOOD)
    assert desired(back).generation == 3
    assert desired(back).digest == desired(first).digest


def test_the_digest_tells_keys_and_texts_apart():
    one = take(None, {"models.yaml": native(), "models.yml": native()})
    other = take(None, {"models.yaml": native()})
    assert desired(one).digest != desired(other).digest


# The one key


def test_only_the_key_that_was_asked_for_is_read():
    options = AcceptOptions(config_key="list.yaml")
    files = {"list.yaml": native(lora("a", "/a")), "models.yaml": native(lora("b", "/b"))}
    first = take(None, files, options=options)
    assert sources(first) == {"a": "/a"}
    unknown = take(first, {"list.yaml": "words"}, options=options)
    assert sources(unknown) == {"a": "/a"}
    assert "no known format" in whats(unknown)
    gone = take(first, {"models.yaml": native()}, options=options)
    assert sources(gone) == {"a": "/a"}
    assert "list.yaml | the key is gone" in whats(gone)
    unreadable = replace(snapshot({}), unreadable={"list.yaml": "no UTF-8", "models.yaml": "x"})
    assert [one.where for one in take(None, unreadable, options=options).problems] == ["list.yaml"]


def test_a_key_that_was_asked_for_and_is_missing_is_a_problem():
    options = AcceptOptions(config_key="list.yaml")
    accepted = take(None, {"other": "x"}, options=options)
    assert (accepted.desired, accepted.absent, accepted.valid) == (None, True, False)
    assert "the key list.yaml is missing | keys that are there: other" in whats(accepted)
    assert "none" in whats(take(None, {}, options=options))


# What formats mean


def test_native_habits():
    entry = desired(take(None, GOOD)).entries["a"]
    assert (entry.drop_out, entry.unload_grace_seconds) == (DropOut.UNLOAD, 0)
    assert (entry.readiness, entry.everywhere, entry.warmup) == (Readiness.INITIAL, True, False)


def test_michelangelo_habits():
    accepted = take(None, recorded("michelangelo-2"), pod=Pod(name="another"))
    (entry,) = desired(accepted).entries.values()
    assert (entry.drop_out, entry.unload_grace_seconds) == (DropOut.UNLOAD, 150)
    assert (entry.kind, entry.readiness) == (None, Readiness.REQUIRED)
    assert desired(accepted).elsewhere == {"fraud-2026-05"}
    first = take(None, recorded("michelangelo-1"))
    assert desired(first).entries["fraud-2026-04"].readiness is Readiness.INITIAL


def test_lora_syncer_habits():
    accepted = take(None, recorded("lora-syncer"))
    entry = desired(accepted).entries["billing-v3"]
    assert (entry.drop_out, entry.readiness) == (DropOut.KEEP, Readiness.INITIAL)
    assert (entry.kind, entry.passthrough) == (Kind.LORA, True)
    assert desired(accepted).absent == {"billing-v2"}
    assert desired(accepted).drop_out is DropOut.KEEP


def test_kserve_habits():
    accepted = take(None, recorded("kserve"))
    entry = desired(accepted).entries["churn"]
    assert (entry.drop_out, entry.unload_grace_seconds) == (DropOut.UNLOAD, 0)
    assert (entry.kind, entry.readiness) == (None, Readiness.INITIAL)
    assert desired(accepted).drop_out is DropOut.UNLOAD


def test_the_grace_of_the_flag_holds_for_every_format():
    options = AcceptOptions(unload_grace_seconds=7)
    for name in ("native", "michelangelo-1", "lora-syncer", "kserve"):
        accepted = take(None, recorded(name), options=options)
        assert {one.unload_grace_seconds for one in desired(accepted).entries.values()} == {7}


def test_warmup_is_what_the_entry_says_else_the_flag():
    files = {"models.yaml": native(lora("a", "/a"), lora("b", "/b", "warmup: false"))}
    for default in (False, True):
        accepted = take(None, files, options=AcceptOptions(default_warmup=default))
        assert desired(accepted).entries["a"].warmup is default
        assert desired(accepted).entries["b"].warmup is False


def test_a_canary_is_for_its_pod_alone():
    canary = "triton-fraud-server-6c9f7d9b8-abcde"
    accepted = take(None, recorded("michelangelo-2"), pod=Pod(name=canary, uid="u"))
    entry = desired(accepted).entries["fraud-2026-05"]
    assert (entry.readiness, entry.everywhere) == (Readiness.OPTIONAL, False)
    assert desired(accepted).elsewhere == frozenset()
    assert desired(accepted).entries["fraud-2026-04"].everywhere


@pytest.mark.parametrize(
    ("phases", "readiness", "everywhere"),
    [
        (["serving"], Readiness.REQUIRED, True),
        (["staged"], Readiness.OPTIONAL, True),
        ([""], Readiness.INITIAL, True),
        (["soaking"], Readiness.OPTIONAL, True),
        (["staged", ""], Readiness.INITIAL, True),
        (["canary", "staged", "", "serving"], Readiness.REQUIRED, True),
        (["canary", "staged"], Readiness.OPTIONAL, True),
    ],
)
def test_the_phases_of_all_owners_count(phases, readiness, everywhere):
    items = [
        {"name": "a", "storage_path": "s3://b/a", "phase": phase, "deployment_name": str(index)}
        for index, phase in enumerate(phases)
    ]
    entry = desired(take(None, {"model-list.json": json.dumps(items)})).entries["a"]
    assert (entry.readiness, entry.everywhere) == (readiness, everywhere)


def test_of_two_paths_the_one_that_is_held_stays_while_any_owner_names_it():
    def listed(*paths: str) -> dict[str, str]:
        items = [{"name": "a", "storage_path": f"s3://b/{path}"} for path in paths]
        return {"model-list.json": json.dumps(items)}

    first = take(None, listed("1", "2"))
    assert sources(first) == {"a": "s3://b/1"}
    second = take(first, listed("2", "1"))
    assert sources(second) == {"a": "s3://b/1"}
    assert "another storage_path" in whats(second)
    assert sources(take(second, listed("2"))) == {"a": "s3://b/2"}


def test_a_canary_path_of_another_pod_is_not_taken():
    items = [
        {"name": "a", "storage_path": "s3://b/new", "phase": "canary", "canary_pod": "other"},
        {"name": "a", "storage_path": "s3://b/old", "phase": "serving"},
    ]
    assert sources(take(None, {"model-list.json": json.dumps(items)})) == {"a": "s3://b/old"}


# Shares


DIGEST = "sha256:" + "A" * 64


def test_a_rollout_gives_the_others_nothing_or_otherwise():
    share = [Pod(name=f"p-{n}") for n in range(50) if is_in_share("a", Pod(name=f"p-{n}"), 50)]
    rest = [Pod(name=f"p-{n}") for n in range(50) if Pod(name=f"p-{n}") not in share]
    assert share
    assert rest
    alone = {
        "models.yaml": native(lora("a", "/new", f"digest: '{DIGEST}', rollout: {{percent: 50}}"))
    }
    both = {
        "models.yaml": native(
            lora("a", "/new", f"digest: '{DIGEST}', rollout: {{percent: 50, otherwise: /old}}")
        )
    }
    entry = desired(take(None, alone, pod=share[0])).entries["a"]
    assert (entry.source, entry.digest, entry.everywhere) == ("/new", DIGEST.lower(), False)
    elsewhere = desired(take(None, alone, pod=rest[0]))
    assert elsewhere.entries == {}
    assert elsewhere.elsewhere == {"a"}
    assert sources(take(None, both, pod=share[0])) == {"a": "/new"}
    other = desired(take(None, both, pod=rest[0])).entries["a"]
    # Every pod holds the name; the pin is of the other files.
    assert (other.source, other.digest, other.everywhere) == ("/old", None, True)


@given(
    name=st.text(min_size=1, max_size=20),
    uid=st.text(max_size=36),
    low=st.floats(0, 100),
    high=st.floats(0, 100),
)
def test_a_growing_percent_only_adds_pods(name, uid, low, high):
    pod = Pod(name="pod", uid=uid)
    low, high = sorted((low, high))
    assert is_in_share(name, pod, low) <= is_in_share(name, pod, high)
    assert is_in_share(name, pod, 100)
    assert not is_in_share(name, pod, 0)


@pytest.mark.parametrize("percent", [1, 10, 50, 90])
def test_a_share_is_roughly_as_large_as_it_says(percent):
    count = sum(is_in_share("a", Pod(name="p", uid=str(uid)), percent) for uid in range(5000))
    assert abs(count / 50 - percent) < 3


def test_names_and_pods_draw_apart():
    pods = [Pod(name=f"p-{n}") for n in range(200)]
    first = {pod.name for pod in pods if is_in_share("a", pod, 50)}
    second = {pod.name for pod in pods if is_in_share("b", pod, 50)}
    assert first != second
    assert is_in_share("a", Pod(name="x", uid="u"), 50) == is_in_share(
        "a", Pod(name="y", uid="u"), 50
    )


# Restart


def test_nothing_to_restore():
    accepted = restore({}, POD, OPTIONS)
    assert accepted.desired is None
    assert accepted.last_good == {}


def test_restoring_keeps_the_generation_and_goes_on_from_it():
    first = restore(GOOD, POD, OPTIONS, generation=7)
    assert desired(first).generation == 7
    assert desired(take(first, GOOD)).generation == 7
    assert desired(take(first, {"models.yaml": native()})).generation == 8


def test_a_stored_text_that_no_longer_parses_is_a_problem():
    accepted = restore({"models.yaml": "["}, POD, OPTIONS)
    assert accepted.desired is None
    assert accepted.problems


def test_a_broken_note_of_what_was_kept_is_ignored():
    accepted = restore({**GOOD, KEPT_KEY: "{"}, POD, OPTIONS)
    assert sources(accepted) == {"a": "/a", "b": "/b"}


# Anything


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(
        ["", "a", "b", "a,b", "/a", "s3://b/k", "serving", "canary", "pod-1", "lora", "relative"]
    )
)
WORDS = st.sampled_from(
    [
        "name",
        "source",
        "storage_path",
        "phase",
        "canary_pod",
        "modelName",
        "modelSpec",
        "storageUri",
        "id",
        "rollout",
        "percent",
        "models",
        "vLLMLoRAConfig",
        "ensureExist",
        "ensureNotExist",
        "parameters",
        "kind",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=15,
)
KEYS = st.sampled_from(
    ["models.yaml", "models.json", "model-list.json", "configmap.yaml", "x.json"]
)


@given(key=KEYS, value=VALUES, expected=st.booleans())
def test_no_value_raises_anything_else(key, value, expected):
    with suppress(DocumentError):
        document = parse_document(key, json.dumps(value), expected=expected)
        if document is None:
            return
        assert not (document.undecided or document.incomplete) or document.problems


@given(reads=st.lists(st.dictionaries(KEYS, VALUES.map(json.dumps), max_size=2), max_size=3))
def test_no_documents_raise_or_are_forgotten_by_a_restart(reads):
    accepted: Accepted | None = None
    for files in reads:
        accepted = take(accepted, files)


def entry_of(form: str, name: str, good: bool) -> object:
    source = "s3://b/k" if good else 7
    if form == "models.json":
        return {"modelName": name, "modelSpec": {"storageUri": source}}
    if form == "model-list.json":
        return {"name": name, "storage_path": source}
    return {"name": name, "source": source}


@given(
    form=st.sampled_from(["models.yaml", "models.json", "model-list.json"]),
    names=st.lists(st.sampled_from("abcdef"), unique=True, min_size=1),
    spoil=st.data(),
)
def test_a_bad_entry_never_drops_a_name(form, names, spoil):
    def files(items: list[object]) -> dict[str, str]:
        return {form: json.dumps({"models": items} if form == "models.yaml" else items)}

    first = take(None, files([entry_of(form, name, True) for name in names]))
    items: list[object] = []
    for name in names:
        how = spoil.draw(st.sampled_from(["good", "spoiled", "nameless", "junk"]))
        if how == "junk":
            items.append(spoil.draw(SCALARS | st.lists(SCALARS)))
        elif how == "nameless":
            items.append(entry_of(form, f"{name}/{name}", True))
        else:
            items.append(entry_of(form, name, how == "good"))
    second = take(first, files(items))
    assert second.valid
    assert set(names) == set(desired(second).entries)
