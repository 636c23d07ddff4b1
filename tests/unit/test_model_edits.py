"""Documents that are edited: what was meant happens, and everything else stays."""

import json
import textwrap

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Kind
from sidecar.cluster.edits import add_entry, key_for, remove_entry
from sidecar.cluster.entries import MichelangeloModel, NativeModel
from sidecar.core.desired import Format, Readiness, Rollout
from sidecar.core.documents import parse_document
from sidecar.errors import DocumentError

KEY, LIST = "models.yaml", "model-list.json"
PIN = "sha256:" + "0" * 64
TEXT = f"""\
# The fleet of team a.
models:   # one below the other

# Pinned, because of the audit.
- name: a   # the first
  source: /a/1   # its files
  # What was audited:
  digest: {PIN}
  readiness: required
- name: b
  source: /b
  parameters: {{x: 1, y: [true, 1.0]}}   # as they came

# The end.
"""


def native(name, source="/new", **more):
    return NativeModel(name=name, source=source, **more)


def add(text, entry, key=KEY):
    return add_entry(key, text, entry)


def remove(text, name, key=KEY):
    return remove_entry(key, text, Format.NATIVE, name)


def models(text, key=KEY):
    value = json.loads(text) if key.endswith(".json") else yaml.safe_load(text)
    return value["models"]


def lines_gone(before, after):
    """What is no longer there, and what is new, line by line."""
    old, new = before.splitlines(), after.splitlines()
    return [one for one in old if one not in new], [one for one in new if one not in old]


def test_first_entry_makes_the_document():
    edited = add(None, native("a", kind=Kind.LORA))
    assert edited.text == "models:\n- name: a\n  kind: lora\n  source: /new\n"
    assert edited.changed


def test_added_entry_is_all_that_is_new():
    edited = add(TEXT, native("c"))
    assert lines_gone(TEXT, edited.text) == ([], ["- name: c", "  source: /new"])
    assert [one["name"] for one in models(edited.text)] == ["a", "b", "c"]
    assert edited.text.endswith("\n# The end.\n")
    assert not edited.comments_lost


def test_removed_entry_takes_its_own_lines_and_no_comment_of_another():
    edited = remove(TEXT, "a")
    gone, new = lines_gone(TEXT, edited.text)
    assert new == []
    assert gone[0] == "- name: a   # the first"
    assert len(gone) == 5
    assert "# Pinned, because of the audit." in edited.text


def test_last_removal_leaves_an_empty_list_that_can_be_filled_again():
    edited = remove(remove(TEXT, "a").text, "b")
    assert "models: []   # one below the other" in edited.text
    assert not edited.comments_lost
    again = add(edited.text, native("c"))
    assert models(again.text) == [{"name": "c", "source": "/new"}]
    assert "# one below the other" in again.text
    assert not again.comments_lost


def test_replaced_entry_changes_in_its_place_field_by_field():
    edited = add(TEXT, native("a", "/a/2", readiness=Readiness.REQUIRED, pinned=True))
    assert lines_gone(TEXT, edited.text) == (
        ["  source: /a/1   # its files", f"  digest: {PIN}"],
        ["  source: /a/2   # its files", "  pinned: true"],
    )
    assert "  # What was audited:" in edited.text
    assert not edited.comments_lost


def test_field_that_is_no_single_word_is_replaced_as_a_whole():
    edited = add(TEXT, native("b", "/b", parameters={"x": [2, {"z": "a: b"}]}))
    assert models(edited.text)[1]["parameters"] == {"x": [2, {"z": "a: b"}]}
    assert "- name: a   # the first" in edited.text


@pytest.mark.parametrize("text", [TEXT, add(None, native("a", "/a/1")).text])
def test_what_is_so_already_is_not_written_again(text):
    assert not remove(text, "z").changed
    once = add(text, native("z", rollout=Rollout(percent=10.0, otherwise="/old")))
    assert once.changed
    assert "percent: 10\n" in once.text
    again = add(once.text, native("z", rollout=Rollout(percent=10.0, otherwise="/old")))
    assert not again.changed
    assert again.text == once.text


def test_removing_from_no_document_makes_none():
    assert remove(None, "a").text is None
    assert not remove(None, "a").changed


def test_unknown_fields_stay_and_known_ones_are_as_asked():
    text = "models:\n- name: a\n  source: /a\n  owner: team-x\n  pinned: true\nowner: me\n"
    edited = add(text, native("a"))
    assert models(edited.text) == [{"name": "a", "source": "/new", "owner": "team-x"}]
    assert yaml.safe_load(edited.text)["owner"] == "me"


def test_two_entries_of_one_name_become_one():
    text = "models:\n- {name: a, source: /1}\n- {name: b, source: /b}\n- {name: a, source: /2}\n"
    assert models(add(text, native("a")).text) == [
        {"name": "a", "source": "/new"},
        {"name": "b", "source": "/b"},
    ]
    assert models(remove(text, "a").text) == [{"name": "b", "source": "/b"}]


def test_comments_are_lost_only_where_the_layout_leaves_no_choice():
    flow = "# top\nmodels: [{name: a, source: /a}]   # flow\n"
    edited = add(flow, native("b"))
    assert edited.comments_lost
    assert [one["name"] for one in models(edited.text)] == ["a", "b"]
    assert not add("models: [{name: a, source: /a}]\n", native("b")).comments_lost
    inline = (
        "models:\n# kept\n- {name: a, source: /a}   # lost\n- {name: b, source: /b}  # kept, too\n"
    )
    edited = add(inline, native("a"))
    assert edited.comments_lost
    assert edited.text.count("kept") == 2


def test_aliases_and_merges_go_on_meaning_the_same():
    text = textwrap.dedent("""\
        x: &shared {base_model: m, pinned: true}
        models:
        - name: a
          <<: *shared
          source: &files /a   # where
        - name: b
          source: *files
    """)
    text = text.replace("x: &shared", "models_of: &shared")
    before = models(text)
    assert models(add(text, native("c")).text)[:2] == before
    assert models(remove(text, "b").text) == before[:1]
    # The anchor goes with the entry that bears it: the other one keeps its meaning.
    assert models(remove(text, "a").text) == before[1:]
    edited = add(text, native("a", "/a/2", base_model="m", pinned=False))
    assert models(edited.text)[0]["pinned"] is False
    assert models(edited.text)[1] == before[1]


def test_what_is_merged_stays_merged():
    text = "models:\n- &x\n  name: a\n  source: /a   # a\n- <<: *x\n  name: b   # b\n"
    edited = add(text, native("b", "/a", pinned=True))
    assert edited.text == text + "  pinned: true\n"


@pytest.mark.parametrize(
    "odd", ["\x85", "\u2028", "a\nb\n", "\x7f", "\ufffe", "- x", "#", " ", "\t"]
)
def test_odd_characters_arrive_as_they_are(odd):
    edited = add(TEXT, native("a", "/a/1", parameters={odd: odd}))
    assert models(edited.text)[0]["parameters"] == {odd: odd}
    assert not edited.comments_lost


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models:\n- name: [\n", "it is no YAML"),
        ("models:\n", "a list must stand here"),
        ("", "no known format"),
        ("modles: []\n", "models is missing"),
        ("vLLMLoRAConfig: {}\n", "another format: lora-syncer"),
        ("models:\n- {name: b, source: /b, source: /c}\n", "stands twice"),
        ("models: []\nmore: {a: 1, a: 2}\n", "stands twice"),
    ],
)
def test_broken_document_is_told_with_its_place(text, words):
    with pytest.raises(DocumentError, match=words) as caught:
        add(text, native("a"))
    assert caught.value.where.startswith(KEY)


def test_spoiled_neighbour_stays_as_it_is_and_can_be_removed():
    text = "models:\n- {name: bad, source: relative}\n- 3\n- {source: /nameless}\n"
    edited = add(text, native("a"))
    assert models(edited.text)[:3] == models(text)
    assert len(models(remove(text, "bad").text)) == 2


def test_document_that_no_configmap_can_hold_is_refused():
    text = add(None, native("a", parameters={"x": "y" * 700_000})).text
    with pytest.raises(DocumentError, match="would be longer than 1048576 bytes"):
        add(text, native("b", parameters={"x": "y" * 700_000}))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"source": "relative"}, "no URL and no absolute path"),
        ({"digest": "sha256:1"}, "no sha256 digest"),
        ({"name": "a/b"}, "cannot be a name"),
        ({"rollout": Rollout(percent=101)}, "out of range"),
        ({"refresh_seconds": 0.5}, "out of range"),
        ({"parameters": {"x": float("inf")}}, "finite|infinite"),
    ],
)
@pytest.mark.parametrize("text", [None, TEXT])
def test_entry_that_agents_would_refuse_is_refused_here(text, more, words):
    with pytest.raises(DocumentError, match=words) as caught:
        add(text, NativeModel(**{"name": "z", "source": "/z", **more}))
    assert caught.value.where.startswith("the entry ")


def test_native_json_stays_json_in_its_own_layout():
    for text, indent in (('{"models": []}', None), ('{\n    "models": []\n}\n', 4)):
        edited = add(text, native("a"), key="models.json")
        wanted = {"models": [{"name": "a", "source": "/new"}]}
        assert edited.text == json.dumps(wanted, indent=indent) + text[len(text.rstrip()) :]
    assert (
        add('{"models": []}', native("ä")).text == '{"models": [{"name": "ä", "source": "/new"}]}'
    )


def test_json_in_a_yaml_key_stays_readable_as_yaml():
    text = add(
        '{"models": []}', native("a", parameters={"x": "\x7f\x85\u2028\ufeff\ufffe\U0001f600"})
    ).text
    assert models(text)[0]["parameters"] == {"x": "\x7f\x85\u2028\ufeff\ufffe\U0001f600"}


def test_windows_line_ends_and_a_missing_last_one_do_no_harm():
    crlf = TEXT.replace("\n", "\r\n")
    assert [one["name"] for one in models(add(crlf, native("c")).text)] == ["a", "b", "c"]
    bare = "models:\n- name: a\n  source: /a"
    assert add(bare, native("b")).text == bare + "\n- name: b\n  source: /new\n"


def test_key_is_the_one_that_is_there():
    assert key_for(Format.NATIVE, ()) == "models.yaml"
    assert key_for(Format.NATIVE, ("a.txt", "models.json")) == "models.json"
    assert key_for(Format.MICHELANGELO, ("models.yaml",)) == LIST
    with pytest.raises(DocumentError, match=r"models.yaml and models.yml are both there"):
        key_for(Format.NATIVE, ("models.yml", "models.yaml"))


# Michelangelo's own format


def parsed(text):
    assert text is not None
    return json.loads(text)


def theirs(name, source="s3://models/x/", **more):
    return MichelangeloModel(name=name, source=source, **more)


def test_first_generation_is_written_byte_by_byte_as_its_controller_does():
    edited = add_entry(LIST, None, theirs("fraud-2026-04", "s3://deploy-models/fraud-2026-04/"))
    assert edited.text == textwrap.dedent("""\
        [
          {
            "name": "fraud-2026-04",
            "storage_path": "s3://deploy-models/fraud-2026-04/"
          }
        ]""")


def test_second_generation_is_written_byte_by_byte_as_its_controller_does():
    text = add_entry(LIST, None, theirs("a", deployment="eu", phase="canary", canary_pod="p")).text
    text = add_entry(LIST, text, theirs("a", "s3://m/a&<b>.tar")).text
    assert text == textwrap.dedent("""\
        [
          {
            "name": "a",
            "storage_path": "s3://models/x/",
            "deployment_name": "eu",
            "phase": "canary",
            "canary_pod": "p"
          },
          {
            "name": "a",
            "storage_path": "s3://m/a\\u0026\\u003cb\\u003e.tar",
            "deployment_name": ""
          }
        ]""")


def test_last_removal_leaves_the_empty_list():
    text = add_entry(LIST, None, theirs("a")).text
    assert remove_entry(LIST, text, Format.MICHELANGELO, "a").text == "[]"


def test_deployment_and_name_are_the_identity():
    text = add_entry(LIST, None, theirs("a", deployment="eu")).text
    text = add_entry(LIST, text, theirs("a", deployment="us")).text
    text = add_entry(LIST, text, theirs("a", deployment="us", phase="serving")).text
    assert [(one["deployment_name"], one.get("phase")) for one in parsed(text)] == [
        ("eu", None),
        ("us", "serving"),
    ]
    nobody = remove_entry(LIST, text, Format.MICHELANGELO, "a")
    assert (nobody.changed, nobody.others) == (False, ("eu", "us"))
    edited = remove_entry(LIST, text, Format.MICHELANGELO, "a", owner="us")
    assert edited.others == ("eu",)
    assert [one["deployment_name"] for one in parsed(edited.text)] == ["eu"]


def test_fields_of_later_generations_stay_and_the_phase_goes():
    text = '[{"name": "a", "s3_path": "s3://b/a/", "phase": "staged", "weight": 3}]'
    edited = add_entry(LIST, text, theirs("a"))
    assert parsed(edited.text) == [{"name": "a", "weight": 3, "storage_path": "s3://models/x/"}]


@pytest.mark.parametrize("more", [{"phase": "later"}, {"phase": "canary"}, {"source": "models/a"}])
def test_entry_that_its_controller_would_not_write_is_refused(more):
    with pytest.raises(DocumentError):
        add_entry(LIST, None, theirs("a", **more))


NAMES = st.sampled_from(["a", "b", "c", "d"])
SOURCES = st.sampled_from(["/1", "/2", "s3://b/p/", "/with # and: colon", "/ö"])
ENTRIES = st.builds(
    NativeModel,
    name=NAMES,
    source=SOURCES,
    kind=st.none() | st.sampled_from(Kind),
    pinned=st.none() | st.booleans(),
    parameters=st.none() | st.dictionaries(NAMES, st.integers() | st.text(max_size=6), max_size=2),
)
STEPS = st.lists(ENTRIES | NAMES, max_size=12)
INDENTED = """\
models:
  - name: a
    source: '/1'
    # in
    pinned: no

  # b
  - source: /2
    name: b"""
ANCHORED = """\
---
models:
- {name: a, source: /1}
- &x
  name: b
  source: >-
    /2
last: *x
...
"""
STARTS = st.sampled_from(
    [
        TEXT,
        INDENTED,
        ANCHORED,
        "models: []\n",
        "models: [] # none",
        "{models: []}",
        '{"models": []}',
    ]
)


@given(STARTS, STEPS)
def test_any_row_of_edits_leads_to_what_a_dictionary_would_hold(start, steps):
    text, held = start, {one["name"]: one for one in yaml.safe_load(start)["models"]}
    for step in steps:
        if isinstance(step, str):
            text = remove(text, step).text
            held.pop(step, None)
        else:
            text = add(text, step).text
            held[step.name] = step.fields()
    document = parse_document(KEY, text)
    assert document is not None
    assert document.problems == () or "last" in start
    assert {one["name"]: one for one in models(text)} == held
    assert len(models(text)) == len(held)


@given(st.sampled_from([TEXT, INDENTED]), ENTRIES)
def test_no_edit_of_a_list_in_blocks_loses_a_comment(start, entry):
    edited = add(start, entry)
    assert not edited.comments_lost
    # That of a field goes with it: the one with the longest row of lines has one.
    assert edited.text.count("#") >= start.count("#") - 1


NUMBERS = [
    "12345678901234567890.5",
    "1e5",
    "1E+5",
    "1.50",
    "-0.0",
    "1e400",
    "123456789012345678901234567890",
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", ["models.json", KEY])
def test_number_of_another_entry_keeps_its_text(key, number):
    kept = f'"parameters": {{"x": [{number}]}}'
    text = f'{{"models": [{{"name": "a", "source": "/a", {kept}}}]}}'
    edited = add(text, native("b", refresh_seconds=300), key=key)
    assert kept in (edited.text or "")
    assert {one["name"] for one in models(edited.text, key=key)} == {"a", "b"}
    again = remove(edited.text, "b", key=key)
    assert again.text == text
    assert not add(edited.text, native("b", refresh_seconds=300), key=key).changed


def test_number_of_a_field_that_is_not_edited_keeps_its_text():
    text = '[{"name": "a", "storage_path": "s3://b/a/", "weight": 1e400, "share": 1.50}]'
    edited = add_entry(LIST, text, theirs("a"))
    assert edited.text is not None
    assert '"weight": 1e400,\n    "share": 1.50\n' in edited.text
    moved = '{"more": 1e5, "models": [{"name": "a", "source": "/a", "parameters": {"x": 1e5}}]}'
    assert add(moved, native("a", parameters={"x": 2}), key="models.json").text == (
        '{"more": 1e5, "models": [{"name": "a", "source": "/new", "parameters": {"x": 2}}]}'
    )


@pytest.mark.parametrize("text", [None, '{"models": []}'])
@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("key", ["models.json", KEY])
def test_number_that_json_does_not_have_is_refused(key, text, number):
    with pytest.raises(DocumentError) as caught:
        add(text, native("a", parameters={"x": {"y": number}}), key=key)
    assert caught.value.where == "the entry 'a'"


def test_word_that_only_python_takes_for_a_number_stays_a_word():
    text = '{"models": [{"name": "a", "source": "/a", "parameters": {"x": NaN, "y": Infinity}}]}'
    edited = add(text, native("b"))
    assert models(edited.text)[0]["parameters"] == {"x": "NaN", "y": "Infinity"}


def problems(key, text):
    """What is wrong with a document."""
    document = parse_document(key, text)
    assert document is not None
    return document.problems


TWICE = [
    ("models.json", '{"models": [{"name": "a", "source": "/new", "source": "/old"}]}'),
    ("models.json", '{"models": [{"name": "a", "source": "/old", "source": "/new"}]}'),
    (KEY, "models:\n- name: a\n  source: /new\n  source: /old\n# Kept.\n"),
    (KEY, "models:\n- name: a\n  source: /old\n  source: /new\n# Kept.\n"),
    (KEY, "models:\n- {name: a, source: /new, source: /old}\n"),
    (KEY, "models:\n- name: a\n  source: /new\n  parameters: {x: 1, x: 2}\n"),
    (KEY, '{"models": [{"name": "a", "source": "/new", "source": "/old"}]}'),
]


@pytest.mark.parametrize(("key", "text"), TWICE)
def test_entry_with_a_key_twice_is_mended_by_its_replacement(key, text):
    assert problems(key, text)
    edited = add(text, native("a"), key=key)
    assert edited.changed
    assert problems(key, edited.text) == ()
    assert models(edited.text, key=key) == [{"name": "a", "source": "/new"}]
    assert ("# Kept." in edited.text) == ("# Kept." in text)
    again = add(edited.text, native("a"), key=key)
    assert (again.changed, again.text) == (False, edited.text)


def test_key_that_stands_twice_in_what_is_kept_of_an_entry_is_mended():
    text = '[{"name": "a", "storage_path": "s3://models/x/", "weight": 1.50, "weight": 2}]'
    edited = add_entry(LIST, text, theirs("a"))
    assert edited.changed
    assert edited.text is not None
    assert edited.text.count("weight") == 1
    assert '"weight": 1.50' in edited.text
    assert not add_entry(LIST, edited.text, theirs("a")).changed


@pytest.mark.parametrize(
    "text", ["models: []\nmodels: [{name: x, source: /x}]\n", "models: []\na: 1\na: 2\n"]
)
def test_document_with_a_key_twice_is_refused(text):
    with pytest.raises(DocumentError, match="stands twice"):
        add(text, native("a"))
