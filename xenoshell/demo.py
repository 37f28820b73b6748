"""The demonstration: XenoServers on this machine, a web server on each, a look at their pages, and away again.

It has a state directory of its own (``Paths.demo``) and takes no host of the user's inventory, so it never touches the
user's sessions. Everything but the template (kept for the next time) is removed at the end, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .paths import Paths, private_directory
from .wire.causes import Failure

if TYPE_CHECKING:
    from types import FrameType

    from .images.store import ImageStore

SESSION: Final = "demo"
IMAGE: Final = "tiny"
#: A page that takes longer is not coming.
_PAGE_S: Final = 15.0
#: A page longer than this is not ours.
_PAGE_BYTES: Final = 4096

_FILE: Final = """\
# Written by `xenoshell demo`.
schema = 1
name = "{session}"

[budget]
max_per_hour = 5
currency = "EUR"
lease = "1h"

[[vm]]
name = "web"
image = "{image}"
hosts = [{hosts}]

[vm.resources]
vcpus = 1
memory = "128MiB"

[vm.network]
forward = [{{ guest = 80 }}, {{ guest = 22 }}]

[vm.customise]
hostname = "{{vm}}"
authorized_keys = ["{key}"]

[[vm.customise.file]]
path = "/srv/www/index.html"
content = "Hello from {{vm}} on {{host}}.\\n"

[vm.ready]
when = "http"
port = 80
timeout = "180s"
"""


@dataclass(frozen=True)
class Page:
    """What one VM served: the text of its page, or why there was none."""

    vm: str
    url: str
    text: str
    error: str = ""


def demo_paths(user: Paths) -> Paths:
    """The demonstration's own directories: without the hosts and sessions of the user; packages are shared."""
    return Paths(config=private_directory(user.demo / "config"), state=user.demo, cache=user.cache)


def template(store: ImageStore, cache: Path, say: Callable[[str], None]) -> str:
    """The id of the template; built if it is not there yet. Raises what `images.tiny.build` raises."""
    from .images import tiny

    if IMAGE not in store.names():
        say(f"building the template {IMAGE!r} (once; it is kept)")
        tiny.build(store, IMAGE, say, cache=cache / "packages")
    return store.get(IMAGE).id


def session_file(paths: Paths, hosts: tuple[str, ...]) -> Path:
    """Write the session file of the demonstration: one VM on each of ``hosts``."""
    path = paths.state / "demo.toml"
    names = ", ".join(f'"{name}"' for name in hosts)
    key = paths.lab / "id_ed25519.pub"
    path.write_text(_FILE.format(session=SESSION, image=IMAGE, hosts=names, key=key))
    return path


def fetch(addresses: dict[str, str]) -> tuple[Page, ...]:
    """The page of every VM (name -> address:port), all at once."""

    def get(vm: str, address: str) -> Page:
        url = f"http://{address}/"
        try:
            # No proxy of the environment stands between this machine and itself.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(url, timeout=_PAGE_S) as answer:
                return Page(vm, url, answer.read(_PAGE_BYTES).decode("utf-8", "replace"))
        except (urllib.error.URLError, OSError, ValueError) as error:
            return Page(vm, url, "", str(getattr(error, "reason", error)))

    if not addresses:
        return ()
    with ThreadPoolExecutor(max_workers=min(16, len(addresses))) as pool:
        return tuple(pool.map(get, addresses, addresses.values()))


def clear(paths: Paths) -> None:
    """Take the lab down with every VM on it, and forget the session. The template stays. Raises `Failure`."""
    from . import lab

    lab.down(paths)
    for name in ("sessions", "facts"):
        shutil.rmtree(paths.state / name, ignore_errors=True)


@contextlib.contextmanager
def cleared(paths: Paths, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """`clear` at the end of the block, also after Ctrl-C, SIGTERM and SIGHUP; a second one does not stop it.

    Yields a function that calls it off (for ``--keep``). Raises `Failure` (busy) while another demonstration is at
    work: its end would take the lab away from under this one.
    """
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    with (private_directory(paths.state) / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure("busy", "another demonstration is at work", "let it end, or stop it with Ctrl-C") from None
        before = {number: signal.signal(number, interrupt) for number in numbers}
        try:
            yield keep
        finally:
            if not kept:
                ignored = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, *numbers)}
                say("removing everything again")
                try:
                    clear(paths)
                finally:
                    signal.signal(signal.SIGINT, ignored[signal.SIGINT])
            for number, handler in before.items():
                signal.signal(number, handler)


def next_commands(paths: Paths, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """What to try with a demonstration that was kept, in a shell that was first told where it is."""
    first = f"{SESSION}/web-1" if len(hosts) > 1 else f"{SESSION}/web"
    return (
        f"export XENOSHELL_STATE_DIR={shlex.quote(str(paths.state))}",
        "xenoshell ps",
        f"xenoshell console {first}",
        f"xenoshell ssh {first} -- -i $XENOSHELL_STATE_DIR/lab/id_ed25519",
        f"xenoshell logs {first}",
        f"xenoshell stop {SESSION}",
        f"xenoshell replay {SESSION}",
        "xenoshell lab down",
    )
