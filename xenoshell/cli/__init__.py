"""The command line: parse, call, print. No logic of its own."""

from __future__ import annotations


def main() -> None:
    """The console script. Ends the process with one of the exit codes of `xenoshell.cli.exits`."""
    from .root import run

    run()
