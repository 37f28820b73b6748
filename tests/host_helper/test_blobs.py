"""Blobs on their way to a host: verified, resumed, never half there, and nobody's memory or disk filled."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.host_helper.peer import begin, further_channel, recipe_for, running_helper, transfer
from tests.support import eventually
from xenoshell.wire import codec, frames, tree
from xenoshell.wire.values import BLOCK, Recipe

pytestmark = pytest.mark.integration

MIB = 1 << 20


def sparse_image(mib: int = 6) -> bytes:
    """Random data with holes, and an end within a block."""
    generator = random.Random(1)
    parts = [generator.randbytes(MIB // 2) + bytes(MIB // 2) for _ in range(mib)]
    return b"".join(parts) + b"tail"


@pytest.mark.parametrize("codec_", ["zlib", "zstd"])
def test_a_blob_arrives_whole_sparse_and_read_only(codec_: str, tmp_path: Path) -> None:
    data = sparse_image()
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        digest = transfer(helper, data, codec_)
        path = tmp_path / "s/blobs" / digest
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.stat().st_blocks * 512 < len(data) * 0.6
        assert helper.request("facts")["blobs"] == [digest]
        assert list((tmp_path / "s/partial").iterdir()) == []
        assert begin(helper, recipe_for(data)[0]).held


def test_what_died_between_naming_a_blob_and_forgetting_its_transfer_is_removed(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        digest = transfer(helper, b"x")
    left = tmp_path / "s/partial" / digest
    left.mkdir()
    (left / "recipe.json").write_text("{}")
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        eventually(lambda: not left.exists())


def test_an_empty_blob_and_one_of_zeros_need_no_segments(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        for data in (b"", bytes(3 * MIB + 5)):
            digest = transfer(helper, data)
            assert (tmp_path / "s/blobs" / digest).read_bytes() == data


def test_a_killed_transfer_goes_on_with_only_what_is_missing(tmp_path: Path) -> None:
    data = sparse_image(8)
    recipe, packed = recipe_for(data)
    assert len(packed) >= 4
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        state = begin(helper, recipe)
        for index in (0, 2):
            helper.send_segment(state.transfer, index, packed[index])
        helper.send(frames.SEGMENT, state.transfer, (1).to_bytes(4, "big") + packed[1][:100])  # cut short: refused
        os.kill(helper.process.pid, signal.SIGKILL)
        helper.process.wait(10)
    with (tmp_path / "s/partial" / recipe.blob / "done").open("ab") as journal:
        journal.write(b"\0\0")  # the machine died in the middle of an entry
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        state = begin(helper, recipe)
        assert state.missing == tuple(i for i in range(len(packed)) if i not in (0, 2))
        for index in state.missing:
            helper.send_segment(state.transfer, index, packed[index])
        assert helper.request("blob.commit", transfer=state.transfer) == {"blob": recipe.blob}
    assert (tmp_path / "s/blobs" / recipe.blob).read_bytes() == data


def test_a_recipe_packed_otherwise_starts_afresh(tmp_path: Path) -> None:
    data = sparse_image(3)
    first, packed = recipe_for(data, "zlib")
    second, _ = recipe_for(data, "zstd")
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        state = begin(helper, first)
        helper.send_segment(state.transfer, 0, packed[0])
        assert helper.refused("blob.begin", recipe=codec.encode(second))["cause"] == "busy"
        assert begin(helper, first).missing == tuple(range(1, len(packed)))  # again: the same transfer
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        assert begin(helper, second).missing == tuple(range(len(second.segments)))


def test_a_corrupt_segment_is_named_and_can_be_sent_again(tmp_path: Path) -> None:
    recipe, packed = recipe_for(sparse_image(3))
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        state = begin(helper, recipe)
        damaged = packed[1][:50] + bytes([packed[1][50] ^ 1]) + packed[1][51:]
        type_, error = helper.send_segment(state.transfer, 1, damaged)
        assert (type_, error["cause"], error["index"]) == (frames.ERROR, "corrupt-segment", 1)
        assert "segment 1" in error["message"] and "arrived" in error["message"]  # libzstd never saw it
        assert 1 in begin(helper, recipe).missing
        type_, error = helper.send_segment(state.transfer, 99, b"")
        assert (type_, error["cause"]) == (frames.ERROR, "bad-request")
        type_, error = helper.send_segment(12345, 0, packed[0])
        assert (type_, error["cause"]) == (frames.ERROR, "not-found")
        for index in state.missing:
            helper.send_segment(state.transfer, index, packed[index])
        assert "blob" in helper.request("blob.commit", transfer=state.transfer)


@pytest.mark.parametrize("codec_", ["zlib", "zstd"])
def test_a_segment_that_unpacks_to_more_than_it_says_is_refused(codec_: str, tmp_path: Path) -> None:
    """A bomb has the right packed digest and lies about its length."""
    recipe, packed = recipe_for(os.urandom(MIB // 2), codec_)
    bomb, _ = recipe_for(b"x" * MIB, codec_)
    lying = replace(bomb, size=BLOCK, runs=((0, 1, 0, 0),), segments=(replace(bomb.segments[0], raw=BLOCK),))
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        state = begin(helper, lying)
        type_, error = helper.send_segment(state.transfer, 0, recipe_for(b"x" * MIB, codec_)[1][0])
        assert (type_, error["cause"]) == (frames.ERROR, "corrupt-segment")
        assert transfer(helper, os.urandom(10)) is not None
    assert packed and recipe


def test_commit_names_what_is_missing_and_what_the_disk_spoilt(tmp_path: Path) -> None:
    data = sparse_image(4)
    recipe, packed = recipe_for(data)
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        state = begin(helper, recipe)
        everything = list(range(len(packed)))
        assert helper.request("blob.commit", transfer=state.transfer) == {"missing": everything}
        for index in everything:
            helper.send_segment(state.transfer, index, packed[index])
        with (tmp_path / "s/partial" / recipe.blob / "data").open("r+b") as file:
            file.seek(100)
            file.write(b"spoilt")  # within segment 0
            file.seek(MIB - 4096)
            file.write(b"spoilt")  # within a hole
        assert helper.request("blob.commit", transfer=state.transfer) == {"missing": [0]}
        helper.send_segment(state.transfer, 0, packed[0])
        assert helper.request("blob.commit", transfer=state.transfer) == {"blob": recipe.blob}
    assert (tmp_path / "s/blobs" / recipe.blob).read_bytes() == data


def test_a_recipe_that_cannot_give_its_blob_fails_and_is_gone(tmp_path: Path) -> None:
    recipe, packed = recipe_for(sparse_image(2))
    wrong = replace(recipe, blob="0" * 64)
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        state = begin(helper, wrong)
        for index in state.missing:
            helper.send_segment(state.transfer, index, packed[index])
        assert helper.refused("blob.commit", transfer=state.transfer)["cause"] == "corrupt-image"
        assert not (tmp_path / "s/partial" / wrong.blob).exists()
        assert not (tmp_path / "s/blobs" / wrong.blob).exists()


def test_blocks_are_copied_from_a_blob_that_is_held(tmp_path: Path) -> None:
    base = sparse_image(4)
    new = bytearray(base)
    new[BLOCK * 5 : BLOCK * 6] = b"n" * BLOCK
    blocks = -(-len(new) // BLOCK)
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        held = transfer(helper, base)
        literal = b"n" * BLOCK
        pack = zlib.compress(literal)
        segment = {
            "sha256": hashlib.sha256(pack).hexdigest(),
            "packed": len(pack),
            "raw_sha256": hashlib.sha256(literal).hexdigest(),
            "raw": BLOCK,
        }
        recipe = codec.decode(
            Recipe,
            {
                "blob": tree.root_of_bytes(bytes(new)),
                "size": len(new),
                "codec": "zlib",
                "held": [held],
                "segments": [segment],
                "runs": [[0, 5, 1, 0], [5, 1, 0, 0], [6, blocks - 6, 1, 6]],
            },
        )
        state = begin(helper, recipe)
        assert helper.refused("blob.drop", digest=held)["cause"] == "busy"
        assert helper.send_segment(state.transfer, 0, pack)[0] == frames.RESPONSE
        assert helper.request("blob.commit", transfer=state.transfer) == {"blob": recipe.blob}
        path = tmp_path / "s/blobs" / recipe.blob
        assert path.read_bytes() == bytes(new)
        assert path.stat().st_blocks * 512 < len(new) * 0.7
        assert helper.request("blob.drop", digest=held) == {}
        missing = replace(recipe, blob="1" * 64)
        assert helper.refused("blob.begin", recipe=codec.encode(missing))["cause"] == "not-found"


def test_two_clients_of_one_blob_do_not_disturb_each_other(tmp_path: Path) -> None:
    data = sparse_image(3)
    recipe, packed = recipe_for(data)
    with running_helper(tmp_path / "s") as one, running_helper(tmp_path / "s") as two:
        one.hello()
        two.hello()
        state = begin(one, recipe)
        assert two.refused("blob.begin", recipe=codec.encode(recipe))["cause"] == "busy"
        assert two.refused("blob.drop", digest=recipe.blob)["cause"] == "busy"
        for index in state.missing:
            one.send_segment(state.transfer, index, packed[index])
        assert "blob" in one.request("blob.commit", transfer=state.transfer)
        assert begin(two, recipe).held


def test_many_helpers_racing_for_one_blob_make_it_once(tmp_path: Path) -> None:
    data = sparse_image(2)
    recipe, packed = recipe_for(data)
    results: list[str] = []

    def client() -> None:
        with running_helper(tmp_path / "s") as helper:
            helper.hello()
            type_, value = helper.answer(helper.ask("blob.begin", recipe=codec.encode(recipe)))
            if type_ == frames.ERROR:
                results.append(value["cause"])
            elif value["held"]:
                results.append("held")
            else:
                for index in value["missing"]:
                    helper.send_segment(value["transfer"], index, packed[index])
                results.append("made" if "blob" in helper.request("blob.commit", transfer=value["transfer"]) else "?")

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 4 and set(results) <= {"busy", "held", "made"} and results.count("made") == 1
    assert (tmp_path / "s/blobs" / recipe.blob).read_bytes() == data


def test_segments_come_in_over_several_channels_at_once(tmp_path: Path) -> None:
    data = sparse_image(8)
    recipe, packed = recipe_for(data)
    with running_helper(tmp_path / "s") as helper:
        facts = helper.hello()
        state = begin(helper, recipe)
        with further_channel(facts) as one, further_channel(facts) as two:
            channels = [helper, one, two]

            def send(number: int) -> None:
                for index in state.missing[number :: len(channels)]:
                    channels[number].send_segment(state.transfer, index, packed[index])

            threads = [threading.Thread(target=send, args=(number,)) for number in range(len(channels))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert one.request("blob.commit", transfer=state.transfer) == {"blob": recipe.blob}
    assert (tmp_path / "s/blobs" / recipe.blob).read_bytes() == data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_transfer_that_cannot_fit_is_refused_before_it_starts(small_disk: Path) -> None:
    recipe, _ = recipe_for(os.urandom(6 * MIB))
    with running_helper(small_disk / "s") as helper:
        helper.hello()
        error = helper.refused("blob.begin", recipe=codec.encode(recipe))
        assert error["cause"] == "disk-full" and f"({6 * MIB} bytes) are needed" in error["message"]
        hole = bytes(64 * MIB) + b"x"  # big, but nearly all of it holes: fits
        transfer(helper, hole)


def test_a_disk_that_fills_up_stops_the_transfer_and_it_goes_on_later(small_disk: Path) -> None:
    data = os.urandom(2 * MIB)
    recipe, packed = recipe_for(data)
    with running_helper(small_disk / "s") as helper:
        helper.hello()
        state = begin(helper, recipe)
        assert helper.send_segment(state.transfer, 0, packed[0])[0] == frames.RESPONSE
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            file.write(bytes(int(shutil.disk_usage(small_disk).free) - 100_000))
        type_, error = helper.send_segment(state.transfer, 1, packed[1])
        assert (type_, error["cause"], error["index"]) == (frames.ERROR, "disk-full", 1)
        assert "free" in error["message"] and "segment 1" in error["message"]
    filler.unlink()
    with running_helper(small_disk / "s") as helper:
        helper.hello()
        state = begin(helper, recipe)
        assert state.missing == (1,)
        helper.send_segment(state.transfer, 1, packed[1])
        assert helper.request("blob.commit", transfer=state.transfer) == {"blob": recipe.blob}
    assert (small_disk / "s/blobs" / recipe.blob).read_bytes() == data


def test_links_planted_in_the_state_directory_are_not_followed(tmp_path: Path) -> None:
    data = sparse_image(1)
    recipe, packed = recipe_for(data)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        partial = tmp_path / "s/partial" / recipe.blob
        partial.symlink_to(tmp_path)
        assert helper.refused("blob.begin", recipe=codec.encode(recipe))
        partial.unlink()
        partial.mkdir()
        (partial / "data").symlink_to(victim)
        state = begin(helper, recipe)  # no recipe there: everything is removed first
        for index in state.missing:
            helper.send_segment(state.transfer, index, packed[index])
        assert "blob" in helper.request("blob.commit", transfer=state.transfer)
    assert victim.read_text() == "precious"


def test_without_libzstd_the_zstd_program_does_it_and_without_both_only_zlib_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zstandard

    from xenoshell.host import unpack
    from xenoshell.wire.causes import Failure

    monkeypatch.setattr(unpack, "_load_library", lambda: None)
    raw = os.urandom(100_000)
    if unpack.find_program("zstd"):
        unpacker = unpack.Unpacker()
        assert unpacker.codecs() == ("zstd", "zlib")
        assert unpacker.unpack("zstd", zstandard.compress(raw), len(raw)) == raw
        for wrong in (zstandard.compress(raw + b"more"), b"not zstd"):
            with pytest.raises(Failure, match="unpacks to"):
                unpacker.unpack("zstd", wrong, len(raw))
    monkeypatch.setattr(unpack, "find_program", lambda name: None)
    assert unpack.Unpacker().codecs() == ("zlib",)
    with pytest.raises(Failure, match="zlib only"):
        unpack.Unpacker().unpack("zstd", b"", 1)
