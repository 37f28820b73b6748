"""JSON becomes a value of the declared type or an error that names the place; nothing in between."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.wire import codec, values
from xenoshell.wire.values import (
    BlobState,
    CheckLine,
    Forward,
    HostFacts,
    Proof,
    Ready,
    Recipe,
    Usage,
    VmSpec,
    VmStatus,
)

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
PORT = st.integers(0, 65535)
FORWARD = st.builds(Forward, st.integers(1, 65535), PORT, st.sampled_from(["tcp", "udp"]), st.just("0.0.0.0"))
TEXT = st.text(max_size=12)
STATUS = st.builds(
    VmStatus, id=TEXT, session=TEXT, session_id=TEXT, name=TEXT, state=TEXT,
    forwards=st.lists(FORWARD, max_size=3).map(tuple),
    lease_left_s=st.floats(allow_nan=False, allow_infinity=False), usage=st.builds(Usage, cpu_s=st.floats(0, 1e9)),
    host_keys=st.lists(TEXT, max_size=2).map(tuple),
)  # fmt: skip
TYPES = [BlobState, CheckLine, Forward, HostFacts, Proof, Ready, Recipe, Usage, VmSpec, VmStatus]


@given(STATUS)
def test_a_value_comes_back_equal_and_equal_values_give_equal_bytes(status: VmStatus) -> None:
    data = codec.dumps(status)
    assert codec.decode(VmStatus, codec.loads(data)) == status
    assert codec.dumps(codec.decode(VmStatus, codec.loads(data))) == data


@given(st.sampled_from(TYPES), ANY)
def test_hostile_json_is_an_error_of_one_kind(cls: type[Any], value: Any) -> None:
    try:
        decoded = codec.decode(cls, value)
    except codec.CodecError:
        return
    assert isinstance(decoded, cls)


@given(STATUS, st.data())
def test_a_wrong_type_in_any_place_is_found(status: VmStatus, data: st.DataObject) -> None:
    document = codec.encode(status)
    key = data.draw(st.sampled_from(sorted(document)))
    right = document[key]
    wrong = data.draw(
        ANY.filter(lambda v: type(v) is not type(right) and not (isinstance(right, float) and type(v) is int))
    )
    with pytest.raises(codec.CodecError, match=f"VmStatus.{key}"):
        codec.decode(VmStatus, dict(document, **{key: wrong}))


@given(st.binary(max_size=40))
def test_bytes_that_are_no_json_object_are_an_error(data: bytes) -> None:
    try:
        value = codec.loads(data)
    except codec.CodecError:
        return
    assert isinstance(value, dict)


@pytest.mark.parametrize(
    "text", ["[]", "1", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000, '{"a":' * 100_000, "{", "\xff"]
)
def test_json_that_python_would_take_or_choke_on(text: str) -> None:
    with pytest.raises(codec.CodecError):
        codec.loads(text.encode("latin-1"))


def test_unknown_keys_of_a_newer_peer_are_ignored_and_missing_ones_named() -> None:
    assert codec.decode(BlobState, {"held": True, "transfer": 0, "missing": [], "later": 1}) == BlobState(True, 0, ())
    with pytest.raises(codec.CodecError, match=r"BlobState\.transfer: missing"):
        codec.decode(BlobState, {"held": True, "missing": []})


@pytest.mark.parametrize(
    "vm_id", ["", ".", "..", "a/b", "a..b", "-a", "a.-b", "A", "a b", "a\n", "a" * 64, "a.b.c.d", "é", "a.b.c.", "/a"]
)
def test_names_that_are_no_vm_ids(vm_id: str) -> None:
    assert not values.VM_ID.match(vm_id)


@pytest.mark.parametrize("vm_id", ["a", "edge-web.web-1.0123abcd", "0.1.2", "a" * 63])
def test_names_that_are(vm_id: str) -> None:
    assert values.VM_ID.match(vm_id)


def test_json_numbers_keep_their_kind() -> None:
    assert json.loads(codec.dumps(Usage(cpu_s=1.0)))["cpu_s"] == 1.0
    assert codec.decode(Usage, {"cpu_s": 3}).cpu_s == 3.0
    with pytest.raises(codec.CodecError):
        codec.decode(Usage, {"memory_mib": True})


@pytest.mark.parametrize(
    "text",
    [
        b'{"cpu_s": 1e999}',  # infinity, without its name
        b'{"cpu_s": 1' + b"0" * 400 + b"}",  # no float is so large
        b'{"memory_mib": 1' + b"0" * 400 + b"}",
        b'{"memory_mib": -9223372036854775809}',
    ],
)
def test_a_number_that_nobody_can_calculate_with_is_refused(text: bytes) -> None:
    with pytest.raises(codec.CodecError):
        codec.decode(Usage, codec.loads(text))


@pytest.mark.parametrize(
    "text", [b'{"a": "\\ud800"}', b'{"a": "\xed\xa0\x80"}', b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16")]
)
def test_text_that_nobody_can_print_is_refused(text: bytes) -> None:
    with pytest.raises(codec.CodecError):
        codec.loads(text)


def test_escaped_characters_are_read_as_ever() -> None:
    assert codec.loads(b'{"a": "\\u00e9 \\ud83d\\ude00"}') == {"a": "\u00e9 \U0001f600"}


def test_an_answer_never_fails_for_a_name_that_is_no_text() -> None:
    """File and program names of a host need not be UTF-8; Python has them with halves of surrogate pairs."""
    assert codec.loads(codec.dumps({"message": "in use by \udcff"})) == {"message": "in use by ?"}
