"""A host is reached the way OpenSSH's configuration says, and only if its key is the right one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import pytest

from tests.fleet.sshd import Sshd, keygen, make_key, public
from tests.support import eventually, free_port, running
from xenoshell.fleet import knownhosts
from xenoshell.fleet.inventory import Host
from xenoshell.fleet.link import connect
from xenoshell.fleet.trust import pin, scan
from xenoshell.paths import Paths
from xenoshell.wire.causes import Failure

pytestmark = pytest.mark.integration

StartSshd = Callable[..., Sshd]
HostOf = Callable[..., Host]


async def refused(host: Host, paths: Paths, deadline_s: float = 10) -> Failure:
    """The failure that connecting ends in."""
    with pytest.raises(Failure) as caught:
        async with await connect(host, paths, deadline_s=deadline_s):
            pass
    return caught.value


def user_config(text: str, known_hosts: str = "") -> None:
    """The user's ~/.ssh."""
    directory = Path.home() / ".ssh"
    directory.mkdir(mode=0o700)
    (directory / "config").write_text(text)
    (directory / "known_hosts").write_text(known_hosts)


def alias(name: str, server: Sshd, more: str = "") -> str:
    return (
        f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n"
        f"  IdentityFile {server.identity}\n{more}\n"
    )


# ---------------------------------------------------------------- the way there


async def test_an_alias_of_the_users_configuration_leads_through_its_jump_host(
    start_sshd: StartSshd, paths: Paths, tmp_path: Path
) -> None:
    gate, inner = start_sshd("gate"), start_sshd("inner")
    config = alias("gate", gate) + alias("inner", inner, "  ProxyJump gate")
    user_config(config, gate.known_line + inner.known_line)
    host = Host(name="ams-1", ssh="inner", state_dir=str(tmp_path / "there"))
    async with await connect(host, paths, deadline_s=10) as link:
        assert link.fingerprint == inner.fingerprint
        assert link.facts.state_dir == str(tmp_path / "there")
        assert await link.vm_list() == ()
    assert "direct-tcpip" in gate.log, "the connection did not go through the jump host"


async def test_a_jump_host_with_an_unknown_key_is_refused_by_name(start_sshd: StartSshd, paths: Paths) -> None:
    gate, inner = start_sshd("gate"), start_sshd("inner")
    user_config(alias("gate", gate) + alias("inner", inner, "  ProxyJump gate"), inner.known_line)
    failure = await refused(Host(name="ams-1", ssh="inner"), paths)
    assert failure.cause == "host-key-unknown"
    assert "jump host gate" in failure.message and gate.fingerprint in failure.message
    assert "`ssh gate`" in failure.remedy


async def test_a_jump_that_leads_to_itself_ends(start_sshd: StartSshd, paths: Paths) -> None:
    user_config("Host round\n  HostName 127.0.0.1\n  ProxyJump round\n")
    failure = await refused(Host(name="ams-1", ssh="round"), paths)
    assert failure.cause == "unreachable" and "circles" in failure.message


async def test_what_the_target_says_goes_before_the_configuration(server: Sshd, paths: Paths, tmp_path: Path) -> None:
    user_config(f"Host *\n  Port 1\n  User nobody\n  IdentityFile {server.identity}\n", known_hosts=server.known_line)
    host = Host(name="ams-1", ssh=server.target, state_dir=str(tmp_path / "there"))
    async with await connect(host, paths, deadline_s=10) as link:
        assert link.facts.user == server.user


async def test_a_known_hosts_file_that_the_configuration_names_counts(
    server: Sshd, paths: Paths, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text(server.known_line)
    user_config(alias("box", server, f"  UserKnownHostsFile ~/none {tmp_path}/elsewhere"))
    async with await connect(Host(name="a", ssh="box", state_dir=str(tmp_path / "s")), paths, deadline_s=10) as link:
        assert link.key_type == "ssh-ed25519"


def ssh_add(key: Path, agent: str) -> None:
    """Give a key to an agent."""
    subprocess.run(["ssh-add", "-q", key], check=True, env=os.environ | {"SSH_AUTH_SOCK": agent})


def hashed(file: Path) -> str:
    """Hash the names in a known_hosts file; its text."""
    keygen("-H", "-f", file)
    return file.read_text()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """An ssh-agent; the path of its socket."""
    path = tmp_path / "agent"
    with running("ssh-agent", "-D", "-a", path, stdout=subprocess.DEVNULL):
        eventually(path.exists, what="ssh-agent listens")
        yield str(path)


async def test_a_key_that_only_the_agent_holds_logs_in(
    server: Sshd, agent: str, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    ssh_add(server.identity, agent)
    user_config(f"Host box\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n", server.known_line)
    server.identity.unlink()
    async with await connect(Host(name="a", ssh="box", state_dir=str(tmp_path / "s")), paths, deadline_s=10) as link:
        assert link.facts.user == server.user


async def test_an_agent_full_of_other_keys_is_asked_for_the_right_one_only(
    server: Sshd, agent: str, host_of: HostOf, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshd hangs up after six keys that it does not know."""
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    for n in range(8):
        ssh_add(make_key(tmp_path / f"other{n}"), agent)
    ssh_add(server.identity, agent)
    async with await connect(host_of(server), paths, deadline_s=10) as link:
        assert link.facts.user == server.user


async def test_a_proxy_command_is_used(start_sshd: StartSshd, paths: Paths, tmp_path: Path) -> None:
    gate, inner = start_sshd("gate"), start_sshd("inner")
    (tmp_path / "gate.known").write_text(gate.known_line)
    command = (
        f"ssh -F none -i {gate.identity} -o UserKnownHostsFile={tmp_path}/gate.known -p {gate.port} -W %h:%p "
        f"{gate.user}@127.0.0.1"
    )
    user_config(alias("inner", inner, f"  ProxyCommand {command}"), inner.known_line)
    host = Host(name="a", ssh="inner", state_dir=str(tmp_path / "there"))
    async with await connect(host, paths, deadline_s=20) as link:
        assert link.fingerprint == inner.fingerprint
    assert (await scan(host, paths)).known == "same"


async def test_a_key_that_the_host_does_not_take_is_named(
    server: Sshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other")
    failure = await refused(host_of(server, identity=other), paths)
    assert failure.cause == "auth-failed"
    assert str(other) in failure.message and "no agent" in failure.message


async def test_a_key_with_a_passphrase_fails_without_a_question(
    server: Sshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    keygen("-q", "-t", "ed25519", "-N", "secret", "-f", locked)
    failure = await refused(host_of(server, identity=locked), paths)
    assert failure.cause == "auth-failed" and "encrypted" in failure.message


async def test_nothing_listening_and_no_such_name_are_told_apart(paths: Paths) -> None:
    user_config("")
    port = free_port()
    closed = await refused(Host(name="a", ssh=f"root@127.0.0.1:{port}"), paths)
    assert (
        closed.cause == "unreachable" and f"127.0.0.1:{port}" in closed.message and "refused" in closed.message.lower()
    )
    nowhere = await refused(Host(name="a", ssh="nowhere.invalid"), paths)
    assert nowhere.cause == "unreachable" and "nowhere.invalid does not resolve" in nowhere.message


async def test_a_broken_configuration_is_named_with_its_line(paths: Paths) -> None:
    user_config("Host *\n  Port ssh\n")
    failure = await refused(Host(name="a", ssh="box"), paths)
    assert failure.cause == "unreachable" and ".ssh/config line 2" in failure.message


# ---------------------------------------------------------------- host keys


async def test_an_unknown_key_is_refused_shown_pinned_and_then_accepted(
    server: Sshd, host_of: HostOf, paths: Paths
) -> None:
    host = host_of(server, known="")
    failure = await refused(host, paths)
    assert failure.cause == "host-key-unknown"
    assert server.fingerprint in failure.message and "ssh-ed25519" in failure.message
    assert "xenoshell hosts trust ams-1" in failure.remedy
    assert "Accepted" not in server.log, "it logged in before it checked the key"

    key = await scan(host, paths)
    assert (key.known, key.fingerprint, key.type) == ("unknown", server.fingerprint, "ssh-ed25519")
    assert pin(host, key, paths)
    assert paths.known_hosts.read_text() == server.known_line
    assert not pin(host, key, paths), "pinned twice"
    assert (await scan(host, paths)).known == "same"
    async with await connect(host, paths, deadline_s=10) as link:
        assert link.fingerprint == server.fingerprint


def test_keys_pinned_at_the_same_time_are_all_pinned(tmp_path: Path) -> None:
    file = tmp_path / "config/known_hosts"
    key = knownhosts.host_key(asyncssh.generate_private_key("ssh-ed25519"))
    names = [f"host-{n}" for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: knownhosts.pin(file, name, 22, key), names))
    assert sorted(line.split()[0] for line in file.read_text().splitlines()) == sorted(names)


async def test_a_changed_key_is_refused_with_both_fingerprints_and_the_line(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    server = start_sshd()
    old = make_key(tmp_path / "old")
    old_line = f"[127.0.0.1]:{server.port} {public(old)}"
    host = host_of(server, known="# a comment\n" + old_line)
    failure = await refused(host, paths)
    assert failure.cause == "host-key-changed"
    assert server.fingerprint in failure.message
    assert keygen("-lf", f"{old}.pub").split()[1] in failure.message
    assert "ams-1.known_hosts:2" in failure.message
    assert "Accepted" not in server.log
    assert (await scan(host, paths)).known == "changed"


async def test_a_host_that_has_none_of_the_known_types_any_more_has_changed(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    server = start_sshd()
    old = make_key(tmp_path / "old", "ecdsa")
    failure = await refused(host_of(server, known=f"[127.0.0.1]:{server.port} {public(old)}"), paths)
    assert failure.cause == "host-key-changed" and server.fingerprint in failure.message


async def test_a_pinned_key_is_replaced_only_when_asked_for(
    server: Sshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    host = host_of(server, known="")
    old = make_key(tmp_path / "old")
    others = f"[127.0.0.1]:1 {server.public}\n# mine\n"
    paths.known_hosts.write_text(others + f"[127.0.0.1]:{server.port} {public(old)}")
    key = await scan(host, paths)
    with pytest.raises(Failure) as caught:
        pin(host, key, paths)
    assert caught.value.cause == "host-key-changed"
    assert pin(host, key, paths, replace=True)
    assert paths.known_hosts.read_text() == others + server.known_line


async def test_a_changed_key_in_a_file_that_is_not_ours_is_not_edited(
    server: Sshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    old = make_key(tmp_path / "old")
    host = host_of(server, known=f"[127.0.0.1]:{server.port} {public(old)}")
    with pytest.raises(Failure) as caught:
        pin(host, await scan(host, paths), paths, replace=True)
    assert "ams-1.known_hosts:1" in caught.value.message and not paths.known_hosts.exists()


async def test_hashed_names_are_recognised(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    host = host_of(server)
    assert "127.0.0.1" not in hashed(Path(str(host.ssh_options.known_hosts)))
    async with await connect(host, paths, deadline_s=10) as link:
        assert link.fingerprint == server.fingerprint
    assert (await scan(host, paths)).known == "same"


async def test_an_authority_vouches_for_a_host(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path / "ca"), make_key(tmp_path / "certified")
    keygen("-q", "-s", authority, "-I", "box", "-h", "-n", "127.0.0.1", "-V", "-1d:+1d", f"{key}.pub")
    server = start_sshd(host_key=key, config=f"HostCertificate {key}-cert.pub")
    trusted = public(authority)
    host = host_of(server, known=f"@cert-authority [127.0.0.1]:* {trusted}")
    async with await connect(host, paths, deadline_s=10) as link:
        assert link.fingerprint == server.fingerprint
    assert (await scan(host, paths)).known == "certificate"

    other = public(make_key(tmp_path / "ca2"))
    stranger = host_of(server, name="b", known=f"@cert-authority [127.0.0.1]:* {other}")
    failure = await refused(stranger, paths)
    assert failure.cause == "host-key-unknown" and "certificate" in failure.message


async def test_a_certified_host_whose_authority_is_unknown_can_be_pinned_by_its_key(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path / "ca"), make_key(tmp_path / "certified")
    keygen("-q", "-s", authority, "-I", "box", "-h", "-n", "127.0.0.1", "-V", "-1d:+1d", f"{key}.pub")
    server = start_sshd(host_key=key, config=f"HostCertificate {key}-cert.pub")
    host = host_of(server, known="")
    failure = await refused(host, paths)
    assert failure.cause == "host-key-unknown" and server.fingerprint in failure.message
    pin(host, await scan(host, paths), paths)
    async with await connect(host, paths, deadline_s=10) as link:
        assert link.fingerprint == server.fingerprint


async def test_a_certificate_for_another_name_is_refused(
    start_sshd: StartSshd, host_of: HostOf, paths: Paths, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path / "ca"), make_key(tmp_path / "certified")
    keygen("-q", "-s", authority, "-I", "box", "-h", "-n", "other.example", "-V", "-1d:+1d", f"{key}.pub")
    server = start_sshd(host_key=key, config=f"HostCertificate {key}-cert.pub")
    host = host_of(server, known=f"@cert-authority * {public(authority)}")
    failure = await refused(host, paths)
    assert failure.cause == "host-key-unknown" and "certificate" in failure.message


async def test_a_revoked_key_is_refused_even_if_it_is_known(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    host = host_of(server, known=server.known_line + "@revoked * " + server.public + "\n")
    failure = await refused(host, paths)
    assert (
        failure.cause == "host-key-changed" and "revoked" in failure.message and server.fingerprint in failure.message
    )
    assert "do not connect" in failure.remedy
    key = await scan(host, paths)
    assert key.known == "revoked"
    with pytest.raises(Failure):
        pin(host, key, paths, replace=True)


@pytest.mark.parametrize("words", ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null"])
async def test_no_configuration_switches_the_check_off(server: Sshd, paths: Paths, words: str) -> None:
    """And the files that it puts aside are not read."""
    user_config(alias("box", server, f"  StrictHostKeyChecking no\n  {words}"), server.known_line)
    failure = await refused(Host(name="a", ssh="box"), paths)
    assert failure.cause == "host-key-unknown"
    assert "Accepted" not in server.log
