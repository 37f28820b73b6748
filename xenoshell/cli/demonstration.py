"""`xenoshell demo` on the screen."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import demo, lab
from ..console.clean import clean
from ..wire.causes import Failure
from .command import Cli
from .common import count, inventory
from .exits import SOME_FAILED, Stop
from .quoting import show_quote
from .rollout import run_deployment

if TYPE_CHECKING:
    from ..deploy.engine import Outcome


def demonstrate(cli: Cli, hosts: int, *, keep: bool, accel: str) -> None:
    """The whole demonstration. What it starts it removes, unless ``keep``."""
    paths = demo.demo_paths(cli.paths)
    out = cli.out
    with demo.cleared(paths, out.note) as kept:
        out.note(f"{count(hosts, 'XenoServer')} on this machine, with sshd and QEMU of their own")
        up = lab.up(paths, hosts)
        names = up.names[:hosts]
        outcome = _deploy(replace(cli, paths=paths), names, accel)
        pages = demo.fetch({vm.vm: vm.address for vm in outcome.vms if vm.ready and vm.address})
        if not out.json:
            out.data()
        for page in pages:
            if out.json:
                out.line({"demo": "page", "vm": page.vm, "url": page.url, "text": page.text, "error": page.error})
            else:
                text = clean(page.text) if not page.error else out.paint(f"no page: {clean(page.error)}", "bad")
                out.data(f"{page.vm}  {page.url}  {text}")
        good = outcome.exit_code == 0 and len(pages) == len(names) and not any(page.error for page in pages)
        if keep:
            kept()
            commands = demo.next_commands(paths, names)
            if out.json:
                out.line({"demo": "kept", "state_dir": str(paths.state), "commands": list(commands)})
            else:
                out.data("\nEverything goes on running. Try:")
                for line in commands:
                    out.data(f"  {line}")
        elif good and out.live and sys.stdin.isatty():
            _offer_console(replace(cli, paths=paths), outcome)
    if not good:
        raise Stop(outcome.exit_code or SOME_FAILED)


def _deploy(cli: Cli, names: tuple[str, ...], accel: str) -> Outcome:
    from ..deploy.service import Options, prepare, quote_session
    from ..images.store import ImageStore
    from ..session.load import load_session

    store = ImageStore(cli.paths.images)
    demo.template(store, cli.paths.cache, cli.out.note)
    loaded = load_session(demo.session_file(cli.paths, names))
    prepared = prepare(loaded, inventory(cli.paths), store, cli.paths)
    quoted = quote_session(prepared)
    if cli.out.json:
        document: dict[str, Any] = quoted.to_json()
        cli.out.line({"demo": "quote", **document})
    else:
        show_quote(cli.out, quoted)
        cli.out.data()
    return run_deployment(cli, prepared, Options(accel))


def _offer_console(cli: Cli, outcome: Outcome) -> None:
    """End with a person at a guest's console."""
    from .watch import console

    vm = next(vm.vm for vm in outcome.vms if vm.ready)
    cli.out.warn(f"\nEnter: the console of {vm} (Ctrl-] leaves it). q and Enter: the end, and everything is removed.")
    if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
        return
    try:
        console(cli, f"{demo.SESSION}/{vm}")
    except Failure as failure:
        cli.out.warn(f"{clean(failure.message)}")
