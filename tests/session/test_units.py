"""Sizes and durations: exact, strict, and helpful about near misses."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 1 << 30),
        ("512MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("0.5KiB", 512),
        ("2 TiB", 2 << 40),
        ("8GB", 8 * 10**9),
        ("1kB", 1000),
        ("250MB", 250 * 10**6),
        ("1TB", 10**12),
        ("0B", 0),
        ("17B", 17),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size
    assert re.search(units.SIZE_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5", '"5MiB"'),
        ("1g", '"1GiB"'),
        ("1G", '"1GiB"'),
        ("2gib", '"2GiB"'),
        ("3Mb", '"3MiB"'),
        ("0.3B", "whole number of bytes"),
        ("0.1KiB", "whole number"),
        ("", "write"),
        ("GiB", "write"),
        ("-1GiB", "write"),
        ("1e3MiB", "write"),
        ("9999999TiB", "EiB"),
        ("1 parsec", "no such unit"),
        ("٣GiB", "write"),
        ("1GiB\n1", "write"),
    ],
)
def test_a_size_that_is_none_says_what_was_probably_meant(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120s", 120),
        ("24h", 86400),
        ("7d", 604800),
        ("2w", 1209600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("0.001s", 0.001),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds
    assert re.search(units.DURATION_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("120", '"120s"'),
        ("5min", '"5m"'),
        ("2 hours", '"2h"'),
        ("3H", '"3h"'),
        ("30m1h", "longest to the shortest"),
        ("1s1s", "once"),
        ("0.1ms", "millisecond"),
        ("200y", "no such unit"),
        ("99999w", "century"),
        ("", "write"),
        ("-5s", "write"),
        ("s", "write"),
    ],
)
def test_a_duration_that_is_none_says_what_was_probably_meant(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        units.parse_duration(text)


@given(st.integers(0, units.MAX_SIZE))
def test_a_size_is_read_as_it_was_written(size: int) -> None:
    text = units.format_size(size)
    assert units.parse_size(text) == size and re.search(units.SIZE_PATTERN, text)


@given(st.integers(0, units.MAX_DURATION_S * 1000))
def test_a_duration_is_read_as_it_was_written(ms: int) -> None:
    text = units.format_duration(ms / 1000)
    assert units.parse_duration(text) == ms / 1000 and re.search(units.DURATION_PATTERN, text)


@given(st.text(max_size=30))
def test_only_value_errors(text: str) -> None:
    for parse in (units.parse_size, units.parse_duration):
        try:
            parse(text)
        except ValueError:
            continue


def test_canonical_spellings() -> None:
    assert [units.format_size(n) for n in (1 << 30, 3 << 29, 8 * 10**9, 1001, 0)] == [
        "1GiB",
        "1536MiB",
        "8GB",
        "1001B",
        "0B",
    ]
    assert [units.format_duration(n) for n in (86400, 5400, 0.25, 604800, 0, 90)] == [
        "1d",
        "1h30m",
        "250ms",
        "7d",
        "0s",
        "1m30s",
    ]


def test_figures_for_people() -> None:
    assert units.human_size(12_900_000) == "12.3 MiB"
    assert [units.human_duration(n) for n in (0.42, 12, 185, 3600, 190_000)] == [
        "0.4 s",
        "12 s",
        "3 m 5 s",
        "1 h",
        "2 d 4 h",
    ]
