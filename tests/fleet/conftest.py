"""Hosts of the fleet's tests: real sshd on loopback, and the inventory entries that lead to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.sshd import Sshd, sshd
from xenoshell.fleet.inventory import Host, SshOptions


@pytest.fixture
def start_sshd(tmp_path: Path) -> Iterator[Callable[..., Sshd]]:
    """``start_sshd("name", config="...")``: a server that ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(name: str = "sshd", **options: Any) -> Sshd:
            return stack.enter_context(sshd(tmp_path / name, **options))

        yield start


@pytest.fixture
def server(start_sshd: Callable[..., Sshd]) -> Sshd:
    """A server with nothing special about it."""
    return start_sshd()


@pytest.fixture
def host_of(tmp_path: Path) -> Callable[..., Host]:
    """``host_of(server)``: the inventory entry that leads to it, its key known unless ``known`` says otherwise."""

    def make(server: Sshd, *, name: str = "ams-1", known: str | None = None, identity: Path | None = None) -> Host:
        known_hosts = tmp_path / f"{name}.known_hosts"
        known_hosts.write_text(server.known_line if known is None else known)
        config = tmp_path / "empty_ssh_config"
        config.write_text("")
        return Host(
            name=name,
            ssh=server.target,
            state_dir=str(tmp_path / f"{name}.state"),
            ssh_options=SshOptions(
                config=str(config), known_hosts=str(known_hosts), identity=str(identity or server.identity)
            ),
        )

    return make
