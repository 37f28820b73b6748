"""Whatever a client sends, a helper answers with an ERROR at worst, does nothing else, and goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host_helper.peer import Helper, begin, further_channel, recipe_for, running_helper
from tests.support import eventually
from xenoshell.wire import codec, frames
from xenoshell.wire.values import HostFacts

pytestmark = pytest.mark.integration

VERBS = (
    "facts", "blob.begin", "blob.commit", "blob.drop", "vm.create", "vm.list", "vm.stop", "vm.start", "vm.restart",
    "vm.destroy", "vm.renew", "vm.watch", "vm.logs", "vm.console", "prove",
)  # fmt: skip
NAMES = ("id", "op", "spec", "recipe", "digest", "transfer", "kernel", "follow", "tail", "replay", "lease_s")
HOSTILE = (
    "", ".", "..", "../..", "/etc/passwd", "a/../../b", "\0", "a\0b", "a\n", "-rf", "A", "x" * 300, "0" * 64,
    "0" * 64 + "\n", "f" * 63 + "/", "..\x2f..", "$(touch /tmp/owned)", "test.web-1.0123abcd/../../x",
)  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.sampled_from(HOSTILE),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
REQUESTS = st.fixed_dictionaries({"verb": st.sampled_from(VERBS)}, optional=dict.fromkeys(NAMES, JSON))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Helper, HostFacts, Path]]:
    state = tmp_path_factory.mktemp("hostile") / "s"
    with running_helper(state) as helper:
        facts = helper.hello()
        eventually(lambda: list((state / "lib").glob("xenoshell-*.py.*")), 20, "the compiled code")
        yield helper, facts, state


def everything(state: Path) -> list[str]:
    """What there is in a state directory, locks of proofs aside."""
    return sorted(str(p.relative_to(state)) for p in state.rglob("*"))


SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(
    request=REQUESTS,
    following=st.lists(st.tuples(st.sampled_from([frames.DATA, frames.EOF]), st.binary(max_size=20)), max_size=3),
)
def test_no_request_with_wrong_parameters_does_anything(
    request: dict[str, Any], following: list[tuple[int, bytes]], host: tuple[Helper, HostFacts, Path]
) -> None:
    helper, facts, state = host
    before = everything(state)
    with further_channel(facts) as channel:
        channel.send(frames.REQUEST, 5, json.dumps(request).encode())
        for type_, payload in following:
            channel.send(type_, 5, payload)
        type_, value = channel.answer(5)
        if type_ == frames.ERROR:
            assert value["cause"] in ("bad-request", "not-found"), value
        else:
            assert request["verb"] in ("facts", "vm.list", "vm.watch", "blob.drop", "vm.destroy"), value
    assert everything(state) == before
    assert helper.request("vm.list") == {"vms": []}


@SLOW
@given(noise=st.binary(min_size=1, max_size=200))
def test_what_is_no_frame_closes_that_channel_only_and_says_why(
    noise: bytes, host: tuple[Helper, HostFacts, Path]
) -> None:
    helper, facts, _ = host
    with further_channel(facts) as channel:
        channel.write(b"Xx" + noise.ljust(20, b"\0"))
        type_, value = channel.answer(0)
        assert (type_, value["cause"]) == (frames.ERROR, "protocol") and "Xx" in value["message"]
        assert channel.next() is None
    assert helper.request("vm.list") == {"vms": []}


@SLOW
@given(
    sent=st.lists(
        st.tuples(st.sampled_from(sorted(frames.TYPES)), st.integers(0, 2**32 - 1), st.binary(max_size=60)), max_size=8
    )
)
def test_frames_out_of_place_are_refused_or_ignored(
    sent: list[tuple[int, int, bytes]], host: tuple[Helper, HostFacts, Path]
) -> None:
    helper, facts, state = host
    before = everything(state)
    with further_channel(facts) as channel:
        for type_, stream, payload in sent:
            channel.send(type_, stream, payload)
        channel.send(frames.REQUEST, 77, b'{"verb":"vm.list"}')
        while True:
            frame = channel.next()
            assert frame is not None
            if frame.type == frames.RESPONSE:
                break
            assert frame.type == frames.ERROR
            assert json.loads(frame.payload)["cause"] in ("bad-request", "not-found")
    assert everything(state) == before
    assert helper.request("vm.list") == {"vms": []}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_the_state_directory(name: str, host: tuple[Helper, HostFacts, Path]) -> None:
    helper, _, state = host
    before = everything(state)
    for verb in ("vm.stop", "vm.start", "vm.restart", "vm.destroy", "vm.logs", "vm.console", "vm.renew"):
        error = helper.refused(verb, id=name, op="x", follow=False, tail=0, replay=0, lease_s=1)
        assert error["cause"] == "bad-request", (verb, error)
    if name != "0" * 64:
        assert helper.refused("blob.drop", digest=name)["cause"] == "bad-request"
        assert helper.refused("prove", kernel=name)["cause"] == "bad-request"
        assert helper.refused("check", kernel=name)["cause"] == "bad-request"
        recipe = codec.encode(recipe_for(b"x")[0])
        assert helper.refused("blob.begin", recipe=dict(recipe, blob=name))["cause"] == "bad-request"
        assert helper.refused("blob.begin", recipe=dict(recipe, held=[name]))["cause"] == "bad-request"
    assert everything(state) == before


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1}, {"size": -1, "runs": [], "segments": []}, {"size": 1 << 62}, {"runs": [[0, 1, 0, 5]]},
        {"runs": [[0, 1 << 40, 0, 0]]}, {"runs": [[-1, 1, 0, 0]]},
        {"runs": [[0, 1, 1, 0]]}, {"runs": [[0, 1, 0, 0], [0, 1, 0, 0]]}, {"codec": "lzma"}, {"segments": [{}]},
        {"runs": [[0.0, 1, 0, 0]]},
        {"runs": [[True, 1, 0, 0]]}, {"size": True}, {"runs": {}},
    ],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, Any], host: tuple[Helper, HostFacts, Path]) -> None:
    helper, _, state = host
    before = everything(state)
    recipe = dict(codec.encode(recipe_for(b"x" * 5000)[0]), **change)
    assert helper.refused("blob.begin", recipe=recipe)["cause"] in ("bad-request", "disk-full")
    assert everything(state) == before


def test_a_stream_id_is_used_for_one_request_at_a_time(host: tuple[Helper, HostFacts, Path]) -> None:
    _, facts, _ = host
    with further_channel(facts) as channel:
        watch = channel.ask("vm.watch")
        assert channel.answer(watch) == (frames.RESPONSE, {})
        channel.send(frames.REQUEST, watch, b'{"verb":"vm.list"}')
        assert channel.answer(watch)[1]["cause"] == "bad-request"
        channel.send(frames.EOF, watch)  # and the watch was not disturbed
        assert channel.answer(watch) == (frames.EOF, {})
        for number in (0, 0x80000000):
            channel.send(frames.REQUEST, number, b'{"verb":"vm.list"}')
            assert channel.answer(number)[1]["cause"] == "bad-request"


def test_a_client_that_does_not_read_holds_up_nobody_else(host: tuple[Helper, HostFacts, Path]) -> None:
    helper, facts, _ = host
    with further_channel(facts) as deaf:
        request = frames.pack(frames.REQUEST, 1, b'{"verb":"nope"}') * 2000
        os.set_blocking(deaf._read_fd, False)  # the write below ends when the helper stops reading
        with pytest.raises(BlockingIOError):
            while True:
                os.write(deaf._read_fd, request)
        assert helper.request("vm.list") == {"vms": []}
        threads = len(os.listdir(f"/proc/{helper.process.pid}/task"))
        status = Path(f"/proc/{helper.process.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 100_000  # KiB: nothing piles up
    eventually(lambda: len(os.listdir(f"/proc/{helper.process.pid}/task")) < threads)


def test_too_many_requests_at_a_time_are_refused_and_not_queued(host: tuple[Helper, HostFacts, Path]) -> None:
    helper, facts, _ = host
    with further_channel(facts) as channel:
        for number in range(1, 301):
            channel.send(frames.REQUEST, number, b'{"verb":"vm.watch"}')
        answers = [frame for frame in (channel.next() for _ in range(300)) if frame is not None]
        assert {frame.stream for frame in answers} == set(range(1, 301))
        busy = [json.loads(frame.payload) for frame in answers if frame.type == frames.ERROR]
        assert busy and all(value["cause"] == "busy" for value in busy)
    eventually(lambda: helper.request("vm.list") == {"vms": []})
    recipe, _ = recipe_for(b"")
    assert not begin(helper, recipe).missing
