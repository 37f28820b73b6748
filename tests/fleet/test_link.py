"""The link to a host: the helper's first answer, what goes wrong before and after it, and an end without leavings."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Callable
from os.path import dirname, exists
from pathlib import Path

import pytest

from tests.fleet.relay import far_away
from tests.fleet.sshd import Sshd
from tests.fleet.test_reach import refused
from tests.support import descendants, eventually_async, kill, processes_of
from xenoshell.fleet.inventory import Host
from xenoshell.fleet.link import connect
from xenoshell.fleet.pipe import diagnose
from xenoshell.paths import Paths
from xenoshell.wire.causes import Failure

pytestmark = pytest.mark.integration

StartSshd = Callable[..., Sshd]
HostOf = Callable[..., Host]


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def helpers(server: Sshd) -> list[int]:
    """The helpers that run behind a server."""
    found = (p for pid in server.processes for p in descendants(pid))
    return [p.pid for p in found if "python3 -I -S" in p.command and "import os,sys" in p.command]


async def no_sessions(server: Sshd) -> None:
    """The server has nobody connected any more."""
    await eventually_async(lambda: not any(descendants(pid) for pid in server.processes), 5, "connections are closed")


# ---------------------------------------------------------------- the first answer


async def test_the_first_answer_tells_the_facts_and_the_round_trip(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        assert link.facts.user == server.user and link.facts.cpus >= 1
        assert 0 < link.rtt_ms < 100
        assert abs(link.clock_skew_s) < 5
        assert (await link.fresh_facts()).boot_id == link.facts.boot_id


async def test_from_the_first_byte_to_the_helpers_answer_the_client_speaks_ten_times_at_most(
    server: Sshd, host_of: HostOf, paths: Paths
) -> None:
    """Six times for SSH and the login, three for the session, its command and the helper; one for bad luck."""
    host = host_of(server)
    turns: list[str] = []
    async with far_away(server.port, 0.05, turns) as port:
        far = host.model_copy(update={"ssh": f"{server.user}@127.0.0.1:{port}"})
        host_of(server, known=server.known_line.replace(str(server.port), str(port)))
        async with await connect(far, paths, deadline_s=20) as link:
            assert 100 <= link.rtt_ms < 500
            assert turns.count(">") <= 10, "".join(turns)


async def test_a_login_that_prints_ten_kilobytes_first_does_no_harm(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    noisy = script(
        tmp_path / "noisy",
        'i=0; while [ $i -lt 200 ]; do echo "Welcome to this machine, mind the XS gap, visitor $i"; i=$((i+1)); done\n'
        'eval "$SSH_ORIGINAL_COMMAND"\n',
    )
    server = start_sshd(config=f"ForceCommand {noisy}")
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        assert await link.vm_list() == ()


async def test_a_command_that_is_not_the_helper_is_shown(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    no_login = script(tmp_path / "nologin", "echo This account is currently not available.; exit 1\n")
    server = start_sshd(config=f"ForceCommand {no_login}")
    failure = await refused(host_of(server), paths)
    assert failure.cause == "protocol"
    assert "status 1" in failure.message and "This account is currently not available." in failure.message


async def test_endless_noise_is_cut_off_and_shown(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    server = start_sshd(config=f"ForceCommand {script(tmp_path / 'yes', 'exec yes spam')}")
    failure = await refused(host_of(server), paths)
    assert failure.cause == "protocol" and "spam" in failure.message


async def test_a_host_that_hangs_after_authentication_times_out_and_the_step_is_named(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    server = start_sshd(config=f"ForceCommand {script(tmp_path / 'hang', 'exec cat > /dev/null')}")
    began = time.monotonic()
    failure = await refused(host_of(server), paths, deadline_s=1.5)
    assert 1.4 < time.monotonic() - began < 10
    assert failure.cause == "timeout"
    assert "first answer of the helper at ams-1" in failure.message and "1.5 s" in failure.message
    await no_sessions(server)


async def test_a_server_that_says_nothing_times_out_in_the_key_exchange(paths: Paths, host_of: HostOf) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    Path.home().joinpath(".ssh").mkdir()
    failure = await refused(Host(name="ams-1", ssh=f"root@127.0.0.1:{port}"), paths, deadline_s=0.5)
    assert failure.cause == "timeout" and "exchanging keys" in failure.message
    listener.close()
    for writer in writers:
        writer.close()


async def test_a_host_without_python_is_told_from_others(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    bare = script(tmp_path / "bare", 'PATH=/nonexistent exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    failure = await refused(host_of(start_sshd(config=f"ForceCommand {bare}")), paths)
    assert failure.cause == "no-python" and "python3" in failure.message


@pytest.mark.parametrize(
    ("status", "stderr", "noise", "greeted", "cause"),
    [
        (127, "sh: 1: exec: python3: not found", "", False, "no-python"),
        (127, "", "", False, "no-python"),
        (1, "csh: python3: Command not found.", "", False, "no-python"),
        (1, "xenoshell: python3 >= 3.9 is needed, here is 3.6.15", "", False, "no-python"),
        (1, "xenoshell: the helper arrived damaged", "", False, "protocol"),
        (1, "Traceback (most recent call last):\n  ...\nKeyError: 1", "", False, "internal"),
        (1, "Traceback (most recent call last):\n  ...\nKeyError: 1", "", True, "internal"),
        (None, "", "", True, "connection-lost"),
        (0, "", "not found: python3 is what I like", False, "protocol"),
        (1, "", "This account is currently not available.", False, "protocol"),
    ],
)
def test_how_a_helper_ended_tells_the_cause(
    status: int | None, stderr: str, noise: str, greeted: bool, cause: str
) -> None:
    failure = diagnose("ams-1", status=status, signal="", stderr=stderr.encode(), noise=noise.encode(), greeted=greeted)
    assert failure.cause == cause
    assert failure.message.startswith("ams-1")
    assert (stderr or noise).splitlines()[-1:] == [] or (stderr or noise).splitlines()[-1] in failure.message


# ---------------------------------------------------------------- after it


async def test_a_refusal_of_the_helper_keeps_its_cause(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        with pytest.raises(Failure) as caught:
            await link.request("vm.explode", timeout_s=5)
        assert caught.value.cause == "bad-request" and "vm.explode" in caught.value.message
        with pytest.raises(Failure) as caught:
            await link.vm_stop("no.such.vm")
        assert caught.value.cause == "not-found"
        assert await link.vm_list() == (), "the link did not survive a refusal"


async def test_many_requests_are_under_way_at_once(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        answers = await asyncio.gather(*(link.vm_list() for _ in range(20)), *(link.ping() for _ in range(20)))
        assert len(answers) == 40


async def test_a_killed_helper_fails_what_waits_for_it_at_once(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        watching = link.watch()
        waiting = asyncio.ensure_future(anext(watching))
        await link.ping()  # the watch was asked for before this
        (helper,) = helpers(server)
        kill(helper)
        with pytest.raises(Failure) as caught:
            await asyncio.wait_for(waiting, 5)
        assert caught.value.cause == "connection-lost" and "SIGKILL" in caught.value.message
        with pytest.raises(Failure) as caught:
            await link.vm_list()
        assert caught.value.cause == "connection-lost"
        assert await link.extra_channel() is None
    async with await connect(link.host, paths, deadline_s=10):
        assert not exists(dirname(link.facts.channel)), "the next helper did not tidy up"  # noqa: ASYNC240


async def test_a_killed_sshd_is_a_lost_connection(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        waiting = asyncio.ensure_future(anext(link.watch()))
        await link.ping()
        server.kill()
        with pytest.raises(Failure) as caught:
            await asyncio.wait_for(waiting, 5)
        assert caught.value.cause == "connection-lost"
        assert await asyncio.wait_for(link.ended(), 5) is link.failure is not None


async def test_further_channels_serve_requests_of_their_own(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        channel = await link.extra_channel()
        assert channel is not None and not channel.shared
        assert await channel.request("vm.list", timeout_s=5) == {"vms": []}
        channel.close()
        assert await link.vm_list() == (), "closing one channel took the connection with it"


async def test_where_sshd_grants_no_further_channels_everything_goes_over_the_first(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths
) -> None:
    server = start_sshd(config="AllowStreamLocalForwarding no")
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        assert await link.extra_channel() is None
        assert link.refused
        with pytest.raises(Failure) as caught:
            await link.console("no.such.vm", 100)
        assert caught.value.cause == "not-found"
        assert await link.vm_list() == ()


async def test_closing_ends_the_helper_and_its_socket(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    link = await connect(host_of(server), paths, deadline_s=10)
    socket = dirname(link.facts.channel)
    assert helpers(server) and exists(socket)  # noqa: ASYNC240
    await link.close()
    await link.close()
    await eventually_async(lambda: not helpers(server) and not exists(socket), 5, "the helper is gone")
    await no_sessions(server)
    assert not processes_of(Path(str(link.host.state_dir)))


async def test_cancelling_a_connect_leaves_nothing(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    """The fixture that looks for leavings makes this a test."""
    server = start_sshd(config=f"ForceCommand {script(tmp_path / 'hang', 'exec cat > /dev/null')}")
    connecting = asyncio.create_task(connect(host_of(server), paths, deadline_s=30))
    await eventually_async(lambda: "Starting session" in server.log, 10, "the session starts")
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    await no_sessions(server)
    assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []
