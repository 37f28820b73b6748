"""Blobs reach a host whole, over few channels or many, and only what is missing is sent after whatever went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.fleet.relay import far_away
from tests.fleet.sshd import Sshd, sshd
from tests.host_helper.peer import recipe_for
from xenoshell.fleet.channel import Channel
from xenoshell.fleet.inventory import Host
from xenoshell.fleet.link import HostLink, connect
from xenoshell.fleet.transfer import WINDOW, channels_wanted, send_blob, window_bound
from xenoshell.paths import Paths
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Recipe

pytestmark = pytest.mark.integration

StartSshd = Callable[..., Sshd]
HostOf = Callable[..., Host]
MIB = 1 << 20


class Pack:
    """Segments in memory; ``spoil`` makes the next reads of one segment wrong, ``pause_at`` stops at one for ever."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.data = random.Random(seed).randbytes(size)
        self.recipe, self.segments = recipe_for(self.data, "zstd")
        self.read: list[int] = []
        self.spoil: dict[int, int] = {}
        self.pause_at: int | None = None
        self.paused = asyncio.Event()
        self.go_on = asyncio.Event()

    async def segment(self, index: int) -> bytes:
        self.read.append(index)
        if index == self.pause_at:
            self.paused.set()
            await self.go_on.wait()
        if self.spoil.get(index, 0) > 0:
            self.spoil[index] -= 1
            return bytes(len(self.segments[index]))
        return self.segments[index]

    @property
    def bytes(self) -> int:
        return sum(map(len, self.segments))


class Progress:
    """What was reported."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.changed = asyncio.Event()

    def __call__(self, done: int, needed: int) -> None:
        self.steps.append((done, needed))
        self.changed.set()

    async def at_least(self, done: int) -> None:
        async with asyncio.timeout(20):
            while not self.steps or self.steps[-1][0] < done:
                self.changed.clear()
                await self.changed.wait()


def held(host: Host, recipe: Recipe) -> bytes:
    """The blob as the host has it."""
    return (Path(str(host.state_dir)) / "blobs" / recipe.blob).read_bytes()


@pytest.fixture
async def link(server: Sshd, host_of: HostOf, paths: Paths) -> AsyncIterator[HostLink]:
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        yield link


async def test_a_blob_arrives_and_the_second_time_nothing_is_sent(link: HostLink) -> None:
    pack, progress = Pack(6 * MIB + 4096), Progress()
    assert await send_blob(link, pack, pack.recipe, progress) == pack.bytes
    assert held(link.host, pack.recipe) == pack.data
    assert progress.steps[0] == (0, pack.bytes) and progress.steps[-1] == (pack.bytes, pack.bytes)
    assert progress.steps == sorted(progress.steps)
    assert sorted(pack.read) == list(range(len(pack.segments)))
    assert await send_blob(link, pack, pack.recipe, progress) == 0
    assert progress.steps[-1] == (0, 0)


async def test_a_damaged_segment_is_sent_again(link: HostLink) -> None:
    """Damaged on its way: the copy on this machine is good when it is looked at again."""
    pack, progress = Pack(5 * MIB), Progress()
    pack.spoil = {2: 1}
    assert await send_blob(link, pack, pack.recipe, progress) == pack.bytes + len(pack.segments[2])
    assert held(link.host, pack.recipe) == pack.data


async def test_a_segment_that_is_damaged_every_time_ends_the_transfer(link: HostLink) -> None:
    pack = Pack(3 * MIB)

    class Flaky:
        """Wrong when it is sent, right when it is looked at."""

        sent = 0

        async def segment(self, index: int) -> bytes:
            if index == 1:
                Flaky.sent += 1
                if Flaky.sent % 2:
                    return bytes(len(pack.segments[1]))
            return pack.segments[index]

    with pytest.raises(Failure) as caught:
        await asyncio.wait_for(send_blob(link, Flaky(), pack.recipe, Progress()), 20)
    assert caught.value.cause == "corrupt-segment" and "segment 1" in caught.value.message
    assert Flaky.sent == 2 * (1 + 3), "it was sent again more or less often than three times"


async def test_a_pack_that_is_damaged_here_is_not_blamed_on_the_host(link: HostLink) -> None:
    pack = Pack(3 * MIB)
    pack.spoil = {0: 1000}
    with pytest.raises(Failure) as caught:
        await send_blob(link, pack, pack.recipe, Progress())
    assert caught.value.cause == "corrupt-image"


FIRST = 0x80000000


@pytest.mark.parametrize(
    ("begun", "committed"),
    [
        ({"held": False, "transfer": FIRST, "missing": [0] * 1000}, {}),  # one segment, a thousand times
        ({"held": False, "transfer": FIRST, "missing": [0, 3]}, {}),
        ({"held": False, "transfer": -1, "missing": [0]}, {}),
        ({"held": False, "transfer": 1 << 32, "missing": [0]}, {}),
        ({"held": False, "transfer": 1, "missing": [0]}, {}),  # the stream of a request
        ({"held": False, "transfer": FIRST, "missing": []}, {"missing": [0] * 1000}),
        ({"held": False, "transfer": FIRST, "missing": []}, {"missing": [[], 0]}),
        ({"held": False, "transfer": FIRST, "missing": []}, {"missing": [True]}),
    ],
)
async def test_a_host_that_asks_for_what_there_is_not_gets_nothing(
    begun: dict[str, object], committed: dict[str, object]
) -> None:
    class Liar:
        host = Host(name="liar", ssh="liar")

        async def request(self, verb: str, **params: object) -> dict[str, object]:
            return {"blob.begin": begun, "blob.commit": committed}[verb]

    pack = Pack(3 * MIB)
    with pytest.raises(Failure) as caught:
        await asyncio.wait_for(send_blob(Liar(), pack, pack.recipe, Progress()), 5)  # type: ignore[arg-type]
    assert caught.value.cause == "protocol" and not pack.read


async def test_cancelled_it_goes_on_with_the_rest_on_the_same_link(link: HostLink) -> None:
    pack, progress = Pack(8 * MIB), Progress()
    pack.pause_at = 5
    sending = asyncio.create_task(send_blob(link, pack, pack.recipe, progress))
    await progress.at_least(2 * MIB)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    done = progress.steps[-1][0]
    pack.pause_at = None
    assert await send_blob(link, pack, pack.recipe, progress) <= pack.bytes - done
    assert held(link.host, pack.recipe) == pack.data


async def test_after_a_killed_sshd_only_the_rest_is_sent(host_of: HostOf, paths: Paths, tmp_path: Path) -> None:
    pack, progress = Pack(8 * MIB), Progress()
    pack.pause_at = 4
    with sshd(tmp_path / "sshd") as server:
        host = host_of(server)
        async with await connect(host, paths, deadline_s=10) as link:
            sending = asyncio.create_task(send_blob(link, pack, pack.recipe, progress))
            await asyncio.wait_for(pack.paused.wait(), 20)
            server.kill()
            with pytest.raises(Failure) as caught:
                # It is reading the next segment just now: the loss of the link must end the transfer all the same.
                await asyncio.wait_for(sending, 10)
            assert caught.value.cause == "connection-lost"
    done = progress.steps[-1][0]
    assert MIB <= done < pack.bytes
    pack.pause_at = None
    with sshd(tmp_path / "sshd2", port=server.port, identity=server.identity, host_key=server.host_key):
        async with await connect(host, paths, deadline_s=10) as link:
            assert await send_blob(link, pack, pack.recipe, progress) <= pack.bytes - done
    assert held(host, pack.recipe) == pack.data


async def test_a_channel_that_ends_while_the_link_lives_loses_nothing(link: HostLink) -> None:
    pack, progress = Pack(8 * MIB), Progress()
    channels = counted(link)
    pack.pause_at = 5
    sending = asyncio.create_task(send_blob(link, pack, pack.recipe, progress))
    await asyncio.wait_for(pack.paused.wait(), 20)
    assert channels[0] is not None
    pack.pause_at = None
    channels[0].close()
    pack.go_on.set()
    await asyncio.wait_for(sending, 20)
    assert len(channels) > 1
    assert held(link.host, pack.recipe) == pack.data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", path]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode()}")
    yield path
    subprocess.run(["umount", path], check=True)


def fill(directory: Path) -> Path:
    """A file that takes all the room there is, whatever else is written meanwhile."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 << 10))
    return filler


async def test_a_full_disk_stops_the_transfer_and_it_goes_on_when_there_is_room(
    small_disk: Path, server: Sshd, host_of: HostOf, paths: Paths
) -> None:
    pack, progress = Pack(5 * MIB), Progress()
    pack.pause_at = 4
    host = host_of(server).model_copy(update={"state_dir": str(small_disk / "state")})
    async with await connect(host, paths, deadline_s=10) as link:
        sending = asyncio.create_task(send_blob(link, pack, pack.recipe, progress))
        await asyncio.wait_for(pack.paused.wait(), 20)
        filler = fill(small_disk)
        pack.pause_at = None
        pack.go_on.set()
        with pytest.raises(Failure) as caught:
            await asyncio.wait_for(sending, 20)
        assert caught.value.cause == "disk-full" and "ams-1" in caught.value.message
        filler.unlink()
        done = progress.steps[-1][0]
        assert await send_blob(link, pack, pack.recipe, progress) <= pack.bytes - done < pack.bytes
        assert held(host, pack.recipe) == pack.data


async def test_without_further_channels_it_arrives_over_the_first(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths
) -> None:
    server = start_sshd(config="AllowStreamLocalForwarding no")
    pack = Pack(6 * MIB)
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        link.rtt_ms = 50.0  # several channels are wanted
        sending = asyncio.create_task(send_blob(link, pack, pack.recipe, Progress()))
        assert await link.vm_list() == (), "requests do not get through beside a transfer"
        assert await sending == pack.bytes
        assert held(link.host, pack.recipe) == pack.data


async def test_several_blobs_share_one_link(link: HostLink) -> None:
    packs = [Pack(2 * MIB, seed) for seed in range(4)]
    sent = await asyncio.gather(*(send_blob(link, p, p.recipe, Progress()) for p in packs))
    assert sent == [p.bytes for p in packs]
    for pack in packs:
        assert held(link.host, pack.recipe) == pack.data


def counted(link: HostLink) -> list[Channel | None]:
    """The channels that are opened on ``link`` from now on."""
    opened: list[Channel | None] = []
    original = link.extra_channel

    async def open_one() -> Channel | None:
        opened.append(await original())
        return opened[-1]

    link.extra_channel = open_one  # type: ignore[method-assign]
    return opened


async def test_far_away_it_arrives_over_several_channels(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    host = host_of(server)
    pack = Pack(12 * MIB)
    async with far_away(server.port, 0.05) as port:
        host_of(server, known=server.known_line.replace(str(server.port), str(port)))
        far = host.model_copy(update={"ssh": f"{server.user}@127.0.0.1:{port}"})
        async with await connect(far, paths, deadline_s=20) as link:
            opened = counted(link)
            assert await send_blob(link, pack, pack.recipe, Progress()) == pack.bytes
    assert held(host, pack.recipe) == pack.data
    assert 2 <= len(opened) <= 4


async def test_channels_are_added_while_their_windows_hold_the_transfer_up(link: HostLink) -> None:
    pack = Pack(24 * MIB)
    link.rtt_ms = 2000.0  # 2 MiB in 2 s would be the most that a channel moves
    opened = counted(link)
    assert await send_blob(link, pack, pack.recipe, Progress()) == pack.bytes
    assert held(link.host, pack.recipe) == pack.data
    assert len(opened) == 4


async def test_a_stuck_host_is_given_up(link: HostLink) -> None:
    pack, progress = Pack(6 * MIB), Progress()
    pack.pause_at = 3
    with pytest.raises(Failure) as caught:
        await asyncio.wait_for(send_blob(link, pack, pack.recipe, progress, stall_s=1.0), 10)
    assert caught.value.cause == "timeout" and "acknowledged" in caught.value.message
    assert await link.vm_list() == ()


@pytest.mark.parametrize(
    ("rtt_ms", "left", "channels"),
    [(0.2, 1 << 30, 1), (4.9, 1 << 30, 1), (5, 1 << 30, 2), (300, 1 << 30, 2), (300, WINDOW, 1)],
)
def test_how_many_channels_a_transfer_begins_with(rtt_ms: float, left: int, channels: int) -> None:
    assert channels_wanted(rtt_ms, left) == channels


def test_more_channels_only_help_where_windows_are_the_limit() -> None:
    assert window_bound(10 * MIB, 150, 1)  # 10 of at most 13 MiB/s
    assert window_bound(20 * MIB, 150, 3)
    assert not window_bound(1 * MIB, 150, 1)  # a slow line
    assert not window_bound(400 * MIB, 1, 1)  # nearby
