"""An SSH server for a lab where OpenSSH's is not installed: ``python -m xenoshell.lab.server DIR PORT KEYS``.

It does what xenoshell asks of a host and no more: one user's key, commands run by this user's shell, and forwarding to
UNIX sockets and TCP ports.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import sys
from pathlib import Path

import asyncssh

from xenoshell.lab.processes import TAG

#: What sshd gives a session when nothing else is configured.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Server(asyncssh.SSHServer):
    """Lets the one user in, with a key of ``authorized_keys``, and allows every forward."""

    def __init__(self, user: str, authorized_keys: asyncssh.SSHAuthorizedKeys) -> None:
        self._user = user
        self._authorized_keys = authorized_keys
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        if self._connection is not None and username == self._user:
            self._connection.set_authorized_keys(self._authorized_keys)
        return True  # there are no keys for anybody else

    def public_key_auth_supported(self) -> bool:
        return True

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True


async def _run(process: asyncssh.SSHServerProcess[bytes], directory: Path) -> None:
    """Run the command (or a shell) as this user, its streams being the channel's."""
    account = pwd.getpwuid(os.getuid())
    shell = account.pw_shell or "/bin/sh"
    command = process.command
    environment = {
        "PATH": _PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": shell,
        TAG: str(directory),
    }
    child = await asyncio.create_subprocess_exec(
        shell,
        *(["-c", command] if command else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=account.pw_dir if os.access(account.pw_dir, os.X_OK) else "/",
        env=environment,
        start_new_session=True,
    )
    try:
        await process.redirect(child.stdin, child.stdout, child.stderr)
        code = await child.wait()
        await process.stdout.drain()
        if code < 0:
            process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            process.exit(code)
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGHUP)  # as sshd does when the connection breaks


async def serve(directory: Path, port: int, authorized_keys: Path) -> asyncssh.SSHAcceptor:
    """Listen on 127.0.0.1 with the host's key; the caller closes what this returns."""
    user = pwd.getpwuid(os.getuid()).pw_name
    keys = asyncssh.read_authorized_keys(str(authorized_keys))

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await _run(process, directory)

    return await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: _Server(user, keys),
        server_host_keys=[str(directory / "host_key")],
        process_factory=run,
        encoding=None,
        agent_forwarding=False,
        x11_forwarding=False,
        gss_host=None,
        login_timeout=30,
    )


async def _main(directory: Path, port: int, authorized_keys: Path) -> None:
    acceptor = await serve(directory, port, authorized_keys)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    acceptor.close()
    await acceptor.wait_closed()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
