"""What the bundle runs: ``helper`` (behind SSH), ``supervise`` (one VM) or ``sweep`` (remove them all)."""

from __future__ import annotations

import sys
from typing import List


def main(arguments: List[str]) -> int:
    """Run one of the three programs; return its exit status. Each imports only what it needs: users wait for it."""
    word = arguments[0] if arguments else ""
    if word == "helper" and len(arguments) == 5:
        from xenoshell.host import helper

        return helper.main(arguments[1:])
    if word == "supervise" and len(arguments) == 2:
        from xenoshell.host import supervisor

        return supervisor.main(arguments[1])
    if word == "sweep" and len(arguments) == 2:
        from xenoshell.host import sweep

        return sweep.main(arguments[1])
    sys.stderr.write("usage: helper PREAMBLE VERSION STATE-DIR PATH | supervise VM-DIRECTORY | sweep STATE-DIR\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
