"""A guest's log as JSON lines: every line of it, and no end of memory for a guest that never ends one."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from xenoshell.cli.watch import LONGEST_LINE, json_lines


def lines(made: bytes) -> list[str]:
    parsed = [json.loads(line) for line in made.decode().splitlines()]
    assert all(set(each) == {"session", "vm", "line"} for each in parsed)
    return [each["line"] for each in parsed]


@given(st.lists(st.text(alphabet="ab é\n", max_size=12), max_size=8))
def test_lines_are_whole_whatever_the_pieces(pieces: list[str]) -> None:
    made = json_lines("web", "web-1")
    found = [line for piece in pieces for line in lines(made(piece.encode(), False))]
    found += lines(made(b"", True))
    text = "".join(pieces)
    assert found == text.split("\n")[: None if text and not text.endswith("\n") else -1]


def test_a_line_without_end_comes_in_pieces() -> None:
    made = json_lines("web", "web-1")
    out, longest = "", 0
    for _ in range(400):
        pieces = lines(made(b"x" * 1000, False))
        out += "".join(pieces)
        longest = max(longest, *map(len, pieces), 0)
    assert LONGEST_LINE <= longest <= LONGEST_LINE + 1000
    assert len(out) > 400_000 - LONGEST_LINE - 1000
    assert out + "".join(lines(made(b"", True))) == "x" * 400_000
