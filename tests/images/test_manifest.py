"""An image is identified by what it is, and a manifest from elsewhere is believed only when it is one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.images.manifest import SCHEMA, BlobRef, Manifest, parse
from xenoshell.wire.codec import CodecError

blobs = st.builds(BlobRef, st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 1 << 50))
lines = st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]), max_size=30)
manifests = st.builds(
    Manifest,
    arch=st.sampled_from(["x86_64", "aarch64"]),
    disk=blobs,
    kernel=blobs,
    initrd=st.none() | blobs,
    cmdline=lines,
    boot=st.sampled_from(["kernel", "disk"]),
    customise=st.sampled_from(["nocloud", "agent", "none"]),
    labels=st.dictionaries(lines, lines, max_size=3).map(lambda labels: tuple(sorted(labels.items()))),
)


@given(manifests)
def test_a_manifest_reads_back_as_itself_with_the_same_id(manifest: Manifest) -> None:
    assert parse(manifest.canonical()) == manifest
    assert parse(manifest.canonical()).id == manifest.id


@given(manifests, manifests)
def test_two_images_have_one_id_only_when_they_are_the_same(one: Manifest, other: Manifest) -> None:
    assert (one.id == other.id) == (one == other)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_nothing_that_is_no_manifest_is_taken_for_one(data: bytes) -> None:
    with pytest.raises(CodecError):
        parse(data)


GOOD: dict[str, Any] = {
    "schema": SCHEMA, "arch": "x86_64", "disk": None, "kernel": {"digest": "0" * 64, "size": 1}, "initrd": None,
    "cmdline": "", "boot": "kernel", "customise": "none", "labels": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", SCHEMA + 1), ("arch", "pdp11"), ("boot", "floppy"), ("boot", "disk"), ("kernel", None),
        ("kernel", {"digest": "../../etc/passwd", "size": 1}), ("kernel", {"digest": "0" * 64, "size": -1}),
        ("cmdline", "a\nb"), ("customise", "puppet"), ("labels", {"a": 1}), ("labels", []), ("disk", "x"),
    ],
)  # fmt: skip
def test_each_field_is_checked(key: str, value: object) -> None:
    assert parse(json.dumps(GOOD).encode()).kernel == BlobRef("0" * 64, 1)
    with pytest.raises(CodecError):
        parse(json.dumps({**GOOD, key: value}).encode())


def test_labels_are_added_and_replaced() -> None:
    manifest = Manifest(arch="x86_64", kernel=BlobRef("0" * 64, 1), labels=(("a", "1"), ("c", "3")))
    assert manifest.labelled(b="2", c="4").labels == (("a", "1"), ("b", "2"), ("c", "4"))
