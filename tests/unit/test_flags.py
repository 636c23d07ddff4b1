"""Flags as data: every one is documented, has a variable, and says its name when it is wrong."""

import argparse
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.flags import (
    SIZE_UNITS,
    Flag,
    UsageError,
    add_flags,
    define,
    environment_name,
    flags,
    parse_bytes,
    parse_count,
    parse_positive_seconds,
    parse_prefix,
    parse_seconds,
    parse_switch,
    read_flags,
)
from sidecar.settings import Settings, from_flags

ALL = flags(Settings)
USABLE: dict[Any, tuple[str, object]] = {
    parse_seconds: ("7", 7.0),
    parse_positive_seconds: ("7.5", 7.5),
    parse_count: ("7", 7),
    parse_bytes: ("2Gi", 2 * 2**30),
    parse_prefix: ("/ours=/theirs", ("/ours", "/theirs")),
    parse_switch: ("true", True),
    str: ("seven", "seven"),
}
UNUSABLE: dict[Any, str] = {
    parse_seconds: "-1",
    parse_positive_seconds: "0",
    parse_count: "0",
    parse_bytes: "much",
    parse_prefix: "ours=theirs",
    parse_switch: "maybe",
}


def usable(flag: Flag) -> tuple[str, object]:
    text, value = USABLE[flag.parse]
    if flag.choices:
        text = value = flag.choices[-1]
    return text, (value,) if flag.repeatable else value


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(Settings, parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("field", ALL)
def test_every_flag_says_what_it_does_in_a_sentence(field):
    _, flag, _ = ALL[field]
    assert flag.help[0].isupper()
    assert flag.help.endswith(".")


@pytest.mark.parametrize("field", ALL)
def test_help_names_the_flag_its_variable_and_its_default(field):
    name, _, default = ALL[field]
    parser = argparse.ArgumentParser(formatter_class=wide)
    add_flags(Settings, parser)
    line = next(
        one for one in parser.format_help().splitlines() if f"{name} " in one and "[MODEL" in one
    )
    assert f"[{environment_name(field)}]" in line
    if isinstance(default, str | float | int) and default is not False:
        assert f"(default: {default})" in line


def wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=60, width=1000)


@pytest.mark.parametrize("field", ALL)
def test_flag_is_read(field):
    name, flag, _ = ALL[field]
    text, value = usable(flag)
    assert getattr(from_flags(parse(name, text), {}), field) == value


@pytest.mark.parametrize("field", ALL)
def test_variable_is_read(field):
    _, flag, _ = ALL[field]
    text, value = usable(flag)
    assert getattr(from_flags(parse(), {environment_name(field): text}), field) == value


@pytest.mark.parametrize("field", ALL)
def test_flag_wins_over_its_variable(field):
    name, flag, _ = ALL[field]
    text, value = usable(flag)
    other = UNUSABLE.get(flag.parse, "other")
    assert getattr(from_flags(parse(name, text), {environment_name(field): other}), field) == value


@pytest.mark.parametrize("field", ALL)
def test_empty_variable_is_no_value(field):
    _, _, default = ALL[field]
    assert getattr(from_flags(parse(), {environment_name(field): ""}), field) == default


@pytest.mark.parametrize("field", [f for f, (_, flag, _) in ALL.items() if flag.parse in UNUSABLE])
@pytest.mark.parametrize("by_variable", [False, True])
def test_wrong_value_names_where_it_was_written(field, by_variable):
    name, flag, _ = ALL[field]
    text = UNUSABLE[flag.parse]
    variable = environment_name(field)
    arguments = parse() if by_variable else parse(f"{name}={text}")
    with pytest.raises(UsageError) as caught:
        from_flags(arguments, {variable: text} if by_variable else {})
    assert str(caught.value).startswith(f"{variable if by_variable else name}: {text!r}")


@pytest.mark.parametrize("field", [f for f, (_, flag, _) in ALL.items() if flag.choices])
def test_word_that_is_no_choice_is_answered_with_the_choices(field):
    name, flag, _ = ALL[field]
    with pytest.raises(UsageError, match=f"{name}: 'nonsense' is not one of .*{flag.choices[0]}"):
        from_flags(parse(name, "nonsense"), {})


def test_repeatable_flag_is_collected_and_its_variable_split_at_commas():
    given = from_flags(parse("--allow-source", "/a", "--allow-source", "s3://b"), {})
    assert given.allow_source == ("/a", "s3://b")
    told = from_flags(parse(), {"MODEL_SIDECAR_ALLOW_SOURCE": "/a, s3://b,"})
    assert told.allow_source == ("/a", "s3://b")


def test_switch_needs_no_value_and_can_be_switched_off_again():
    assert from_flags(parse("--warmup"), {}).warmup is True
    assert from_flags(parse("--warmup=false"), {"MODEL_SIDECAR_WARMUP": "true"}).warmup is False


def test_percent_sign_in_a_help_text_is_shown():
    @dataclass(frozen=True)
    class Some:
        share: str = define("", "group", "A share in %.")

    parser = argparse.ArgumentParser()
    add_flags(Some, parser)
    assert "A share in %." in parser.format_help()
    assert read_flags(Some, parser.parse_args(["--share", "5"]), {}) == {"share": "5"}


@given(st.integers(min_value=1, max_value=8000), st.sampled_from(sorted(SIZE_UNITS)))
def test_sizes_take_the_suffixes_of_kubernetes(number, unit):
    assert parse_bytes(f"{number}{unit}") == number * SIZE_UNITS[unit]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-0.1", "", "ten", "1e999"])
def test_durations_are_finite_numbers(text):
    with pytest.raises(ValueError, match=r"number|float"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["0", "-5Gi", "Gi", "5 Gi", "5gi", "1.2.3", ""])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"size|float"):
        parse_bytes(text)
