"""A VM's directory takes orders whatever has become of the disk under it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.host_vm.guests import Host, spec
from xenoshell.host import vmdir
from xenoshell.host.vmdir import VmDir, Wanted, adopt, list_vms
from xenoshell.wire.causes import Failure


@pytest.fixture
def made(host: Host) -> VmDir:
    """A VM that was written down and never started."""
    directory = VmDir(str(host.vms), spec().id)
    directory.create(spec(), b"")
    return directory


@pytest.mark.parametrize("state", ["stopped", "destroyed"])
def test_a_full_disk_keeps_no_vm_from_being_stopped_or_destroyed(
    made: VmDir, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    def full(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    made.want("restart", "an order with a long name, so that the next one is shorter")
    block = os.stat(made.file("wanted.json")).st_blocks
    monkeypatch.setattr(vmdir, "write_whole", full)
    assert made.want(state, "b") == Wanted("b", state, 2) == made.read_wanted()
    assert os.stat(made.file("wanted.json")).st_blocks == block, "it took no room"


def test_another_trouble_of_the_disk_is_told(made: VmDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, data: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(vmdir, "write_whole", broken)
    with pytest.raises(Failure, match="Input/output error"):
        made.want("stopped", "b")
    assert made.read_wanted() == Wanted("create", "running", 1)


@pytest.mark.parametrize("spoilt", [b"", b"{", b"[]", b'{"id": 1}', b'{"a": "\\ud800"}'])
def test_a_vm_that_cannot_be_read_hides_no_other_and_can_be_destroyed(host: Host, made: VmDir, spoilt: bytes) -> None:
    for name in ("spec.json", "state.json"):
        Path(made.file(name)).write_bytes(spoilt)
    status = made.read_status()
    assert (status.id, status.session, status.name) == (made.id, "edge", "web-1")
    assert (status.state, status.cause) == ("failed", "internal") and "spec.json" in status.message
    with pytest.raises(Failure) as caught:
        adopt(made, str(host.library))
    assert caught.value.cause == "internal"
    made.want("destroyed", "b")
    adopt(made, str(host.library))
    assert list_vms(str(host.vms)) == [] == os.listdir(host.vms)


def test_what_is_to_be_destroyed_needs_no_supervisor(host: Host, made: VmDir) -> None:
    """The disk is full, say, and the program is not kept on this host yet."""
    missing = str(host.state / "lib.py")
    with pytest.raises(Failure, match="did not start"):
        adopt(made, missing)
    made.want("destroyed", "b")
    adopt(made, missing)
    assert os.listdir(host.vms) == []
