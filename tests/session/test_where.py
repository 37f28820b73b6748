"""`where`: which hosts will do, and which condition refused one."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.fleet.where import HELP, MEASURES, PLACES, HostView, Where, WhereErrors, parse, unknown_keys

AMS = HostView(
    name="ams-1", labels={"tier": "edge"}, region="eu", country="NL", city="New Amsterdam", rtt_ms=143.4, vcpus=4,
    memory=8 << 30, disk=100 << 30, price_per_hour=Decimal("0.0400"), accel="kvm", arch="x86_64",
)  # fmt: skip
BARE = HostView(name="bare")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "region:eu",
        "region:us,EU",
        "Region:eu",
        "-region:us",
        "!region:us",
        'city:"new amsterdam"',
        "city:'New Amsterdam'",
        'city:"Paris","New Amsterdam"',
        "tier:edge",
        "-tier:core",
        "host:ams-1",
        "name:ams-1",
        "ams",
        "AMS-*",
        "ams-?",
        "-nyc",
        "!nyc-*",
        "rtt<150ms",
        "rtt<=0.2s",
        "rtt < 150ms",
        "rtt >= 100ms",
        "vcpus=4",
        "cpus==4",
        "vcpus>3",
        "memory>=8GiB",
        "memory<9GB",
        "disk>20GiB",
        "price<0.05/h",
        "price<=0.04",
        "price=0.04/h",
        "accel:kvm arch:x86_64",
        "region:eu rtt<150ms  memory>=2GiB\tams",
    ],
)
def test_a_host_that_meets_every_condition_is_not_refused(text: str) -> None:
    assert parse(text).refusals(AMS) == ()
    assert parse(text).text == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rtt<80ms", "rtt<80ms: 143 ms"),
        ("rtt < 80ms", "rtt<80ms: 143 ms"),
        ("region:us", "region:us: eu"),
        ("-region:eu,us", "-region:eu,us: eu"),
        ("memory>=16GiB", "memory>=16GiB: 8.0 GiB"),
        ("price<0.04/h", "price<0.04/h: 0.04/h"),
        ("vcpus>4", "vcpus>4: 4"),
        ("zone:b", "zone:b: it has no label zone"),
        ("nyc", "nyc: its name is ams-1"),
        ("-ams-*", "-ams-*: its name is ams-1"),
    ],
)
def test_a_refused_host_says_which_condition_and_what_it_has(text: str, reason: str) -> None:
    assert parse(f"tier:edge {text}").refusals(AMS) == (reason,)


def test_every_condition_that_refuses_is_named() -> None:
    assert len(parse("rtt<80ms region:us tier:edge vcpus>8").refusals(AMS)) == 3


def test_what_is_not_known_yet_refuses_for_real_and_is_unverified_in_a_quote() -> None:
    where = parse("rtt<80ms memory>=2GiB -region:us accel:kvm")
    assert where.refusals(BARE) == (
        "rtt<80ms: rtt is not known yet",
        "memory>=2GiB: memory is not known yet",
        "accel:kvm: accel is not known yet",
    )
    assert where.refusals(BARE, strict=False) == ()
    assert where.unverified(BARE) == ("rtt<80ms", "memory>=2GiB", "accel:kvm")
    assert where.unverified(AMS) == ()


def test_a_place_that_the_owner_did_not_write_is_not_there() -> None:
    assert parse("region:eu").refusals(BARE, strict=False) == ("region:eu: it has no region",)


@pytest.mark.parametrize(
    ("text", "column", "near"),
    [
        ("region:eu rtt<80", 14, ""),
        ("memory>=2gib", 8, ""),
        ("prize<4", 0, "price"),
        ("rtt:80ms", 0, ""),
        ("vcpus>=two", 7, ""),
        ("price<1e3", 6, ""),
        ("price<0.05/d", 6, ""),
        ("memory", 0, ""),
        ("region:", 7, ""),
        ("region:eu,", 7, ""),
        ("-rtt<80ms", 0, ""),
        ("eu | us", 3, ""),
        ('city:"New York', 0, ""),
        ("rtt<", 4, ""),
        ("vcpus<5>3", 0, ""),
    ],
)
def test_an_error_has_a_column_and_what_is_allowed(text: str, column: int, near: str) -> None:
    with pytest.raises(WhereErrors) as caught:
        parse(text)
    error = caught.value.errors[0]
    assert (error.column, error.nearest) == (column, near)
    assert error.message and error.allowed


def test_all_errors_of_a_text_are_reported() -> None:
    with pytest.raises(WhereErrors) as caught:
        parse("rtt<80 region:eu memory>2 | ok")
    assert [e.column for e in caught.value.errors] == [4, 24, 26]


def test_a_label_that_no_host_has_is_pointed_out_with_the_nearest_word() -> None:
    found = unknown_keys(parse("teir:edge tier:edge regoin:eu xyzzy:1"), {"tier"})
    assert [(u.key, u.column, u.nearest) for u in found] == [
        ("teir", 0, "tier"),
        ("regoin", 20, "region"),
        ("xyzzy", 30, ""),
    ]


@given(st.text(max_size=80) | st.text("region:eu,<>=-!'\" rtt80msGiB*", max_size=60))
def test_no_text_crashes_the_parser(text: str) -> None:
    try:
        where = parse(text)
    except WhereErrors as errors:
        assert all(0 <= e.column <= len(text) for e in errors.errors)
    else:
        assert isinstance(where.refusals(AMS), tuple) and isinstance(where.refusals(BARE, strict=False), tuple)
        # Each condition alone says the same as it did among the others.
        assert tuple(r for term in where.terms for r in Where(term.text, (term,)).refusals(AMS)) == where.refusals(AMS)


def test_long_texts_are_refused_quickly() -> None:
    for text in ("a:" + "b," * 10_000, "a" * 5000, "rtt<80ms " * 300 + '"' * 1000, '"' * 4000, "a:" + "'" * 4001):
        with pytest.raises(WhereErrors):
            parse(text)


def test_the_help_names_every_word() -> None:
    assert all(word in HELP for word in (*PLACES, *MEASURES))
