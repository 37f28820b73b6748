"""VMs through a helper: made, watched, talked to, stopped, found again, destroyed without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host_helper import guest
from tests.host_helper.peer import Helper, Peer, further_channel, running_helper, transfer
from tests.support import eventually, processes_of
from xenoshell.host.sweep import sweep
from xenoshell.wire import codec, frames
from xenoshell.wire.values import VmSpec

pytestmark = pytest.mark.e2e


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "s"
    yield path
    if path.exists():
        assert sweep(str(path)) == []
        eventually(lambda: not processes_of(path), what="the end of all processes of the state directory")


def create(peer: Peer, spec: VmSpec, seed: bytes = b"") -> dict[str, Any]:
    stream = peer.ask("vm.create", spec=codec.encode(spec))
    for at in range(0, len(seed), 1000):
        peer.send(frames.DATA, stream, seed[at : at + 1000])
    if spec.seed_size:
        peer.send(frames.EOF, stream)
    type_, value = peer.answer(stream, 30)
    assert type_ == frames.RESPONSE, value
    return value


def until(peer: Peer, stream: int, vm_id: str, *states: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """Read a watch until a VM is in one of ``states``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        type_, value = peer.answer(stream, timeout_s)
        if type_ == frames.EVENT and value["id"] == vm_id and value["state"] in states:
            return value
    raise AssertionError(f"{vm_id} was not {states} within {timeout_s} s")


def read_until(peer: Peer, stream: int, text: bytes) -> bytes:
    """Console bytes until ``text`` is among them."""
    seen = b""
    while text not in seen:
        frame = peer.next()
        assert frame is not None, seen
        if frame.stream == stream and frame.type == frames.DATA:
            seen += frame.payload
    return seen


def test_a_vm_from_its_making_to_its_end(state: Path) -> None:
    with running_helper(state) as helper:
        facts = helper.hello()
        image = transfer(helper, guest.disk())
        spec = guest.spec("test.web-1.0123abcd", image)
        with further_channel(facts) as watcher, further_channel(facts) as viewer:
            watch = watcher.ask("vm.watch")
            assert watcher.answer(watch) == (frames.RESPONSE, {})
            create(helper, spec)  # made after the watch began
            ready = until(watcher, watch, spec.id, "ready")
            assert ready["accel"] == "tcg" and ready["boot_s"] > 0
            assert create(helper, spec)["pid"] == ready["pid"]  # again: the same one

            console = viewer.ask("vm.console", id=spec.id, replay=1000)
            type_, value = viewer.answer(console)
            assert type_ == frames.RESPONSE and value["replay"] >= len(guest.GREETING)
            assert guest.GREETING in read_until(viewer, console, b"boot sector\r\n")
            viewer.send(frames.DATA, console, b"echo this")
            read_until(viewer, console, b"echo this")
            viewer.send(frames.EOF, console)
            assert viewer.answer(console) == (frames.EOF, {})

            assert helper.refused("blob.drop", digest=image)["cause"] == "busy"
            helper.request("vm.stop", id=spec.id, op="op-1")
            exited = until(watcher, watch, spec.id, "exited")
            assert exited["cause"] == "stopped"
            helper.request("vm.start", id=spec.id, op="op-2")
            assert until(watcher, watch, spec.id, "ready")["run"] == 2
            logs = viewer.ask("vm.logs", id=spec.id, follow=False, tail=0)
            read_until(viewer, logs, guest.GREETING)
            assert viewer.answer(logs) == (frames.EOF, {})
            assert helper.request("vm.renew", id=spec.id, op="op-3", lease_s=1000)["lease_left_s"] > 900
            helper.request("vm.renew", id=spec.id, op="op-3b", lease_s=0, budget_s=0.001)
            assert until(watcher, watch, spec.id, "exited")["cause"] == "budget-spent"
            assert helper.refused("vm.renew", id=spec.id, op="op-3c", lease_s=0, budget_s=-1)["cause"] == "bad-request"
            assert helper.request("vm.destroy", id=spec.id, op="op-4") == {}
            assert not (state / "vms" / spec.id).exists()
            assert helper.request("vm.destroy", id=spec.id, op="op-5") == {}
            assert helper.request("vm.list") == {"vms": []}
            watcher.send(frames.EOF, watch)
            while watcher.answer(watch)[0] != frames.EOF:
                pass
        assert helper.request("blob.drop", digest=image) == {}
        eventually(lambda: not processes_of(state / "vms"), what="the end of guardian and supervisor")


def test_a_vm_outlives_its_helper_and_is_found_by_the_next(state: Path) -> None:
    with running_helper(state) as helper:
        helper.hello()
        spec = guest.spec("test.web-1.0123abcd", transfer(helper, guest.disk()))
        create(helper, spec)
        watch = helper.ask("vm.watch")
        pid = until(helper, watch, spec.id, "ready")["pid"]
    with running_helper(state) as helper:
        facts = helper.hello()
        assert [(vm.id, vm.state, vm.pid) for vm in facts.vms] == [(spec.id, "ready", pid)]
        for process in processes_of(state / "vms"):
            if "supervise" in process.command:
                os.kill(process.pid, signal.SIGKILL)
    with running_helper(state) as helper:
        helper.hello()
        (vm,) = helper.request("vm.list")["vms"]
        assert (vm["state"], vm["pid"]) == ("ready", pid)


def test_a_watch_brings_a_vm_back_that_lost_supervisor_and_guardian(state: Path) -> None:
    with running_helper(state) as helper:
        facts = helper.hello()
        spec = guest.spec("test.web-1.0123abcd", transfer(helper, guest.disk()))
        create(helper, spec)
        with further_channel(facts) as watcher:
            watch = watcher.ask("vm.watch")
            until(watcher, watch, spec.id, "ready")

            def killed() -> bool:
                left = [p for p in processes_of(state / "vms") if "supervise" in p.command]
                for process in left:
                    os.kill(process.pid, signal.SIGKILL)
                return not left

            eventually(killed)
            helper.request("facts")
            again = eventually(lambda: [p for p in processes_of(state / "vms") if "supervise" in p.command], 15)
            assert again
            # and the watch goes on with the new one
            helper.request("vm.stop", id=spec.id, op="op-1")
            assert until(watcher, watch, spec.id, "exited")["cause"] == "stopped"


def test_a_seed_comes_with_the_request_and_only_the_right_one_is_taken(state: Path) -> None:
    seed = os.urandom(5000)
    with running_helper(state) as helper:
        helper.hello()
        image = transfer(helper, guest.disk())
        spec = guest.spec(
            "test.web-1.0123abcd", image, seed_size=len(seed), seed_sha256=hashlib.sha256(seed).hexdigest()
        )
        for wrong, message in ((seed[:-1], "seed"), (b"x" * 5000, "SHA-256"), (seed + b"x", "longer")):
            stream = helper.ask("vm.create", spec=codec.encode(spec))
            helper.send(frames.DATA, stream, wrong)
            helper.send(frames.EOF, stream)
            type_, error = helper.answer(stream)
            assert type_ == frames.ERROR and error["cause"] == "bad-request" and message in error["message"]
        assert helper.request("vm.list") == {"vms": []}
        create(helper, spec, seed)
        assert (state / "vms" / spec.id / "seed.iso").read_bytes() == seed
        missing = guest.spec("test.web-2.0123abcd", "1" * 64)
        assert helper.refused("vm.create", spec=codec.encode(missing))["cause"] == "not-found"
        assert json.loads((state / "vms" / spec.id / "spec.json").read_text())["id"] == spec.id


def test_a_console_ends_with_its_helper_and_nobody_waits_for_it(state: Path) -> None:
    with running_helper(state) as helper:
        helper.hello()
        spec = guest.spec("test.web-1.0123abcd", transfer(helper, guest.disk()))
        create(helper, spec)
        helper.ask("vm.console", id=spec.id, replay=0)
        helper.ask("vm.watch")
        helper.request("facts")
        started = time.monotonic()
        assert Helper.end(helper) == 0
        assert time.monotonic() - started < 10
