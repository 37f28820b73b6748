"""The bundle: sources without comments and docstrings that still mean the same, line for line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from xenoshell.fleet.bundle import bundle, bundle_source, stripped

ROOT = Path(__file__).parents[2]
PYTHONS = Path("~/.pyenv/versions").expanduser()  # tests have another home
SOURCES = sorted([*ROOT.glob("xenoshell/wire/*.py"), *ROOT.glob("xenoshell/host/*.py")])

TRICKY = '''"""Module."""  # and a comment
from __future__ import annotations
# whole line
X = "# not a comment"  # a comment
Y = f"{X!r:#>10} # {'#'}" # another
Z = """a # string
that stays
"""
class C(Exception): """One line."""
class D:
    """Long,
    with 'quotes' and
    lines."""

    A = 1  # c
    "an attribute's docstring"

    def f(self, x="# d"):
        """Doc."""
        return ("kept"
                "as it is", x)  # e

    async def g(self): """Only a docstring."""
def h():
    """Doc"""; return 5
if True:
    "a statement of a string"
W = [
    "first",
    "second",  # in brackets
]
'''


def without_docstrings(source: str) -> str:
    """The syntax tree with line numbers, constant expression statements taken out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
    return "\n".join(
        f"{getattr(node, 'lineno', '')} {ast.dump(node, annotate_fields=False)}"
        for node in ast.walk(tree)
        if not isinstance(node, ast.Module)
    )


@pytest.mark.parametrize(
    "source", [TRICKY, *(path.read_text() for path in SOURCES)], ids=["tricky", *(p.name for p in SOURCES)]
)
def test_stripping_changes_neither_meaning_nor_lines(source: str) -> None:
    small = stripped(source)
    assert without_docstrings(small) == without_docstrings(source)
    assert '"""Long' not in small and "# whole line" not in small and "# another" not in small


def test_tricky_code_still_runs() -> None:
    space: dict[str, object] = {}
    exec(stripped(TRICKY), space)
    assert space["Y"] == f"{space['X']!r:#>10} # #" and space["Z"] == "a # string\nthat stays\n"
    assert space["h"]() == 5 and space["D"]().f() == ("keptas it is", "# d") and space["D"].__doc__ is None  # type: ignore[operator]


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_other_pythons_on_the_client_strip_alike(version: str) -> None:
    """From 3.12 on, the tokenizer cuts f-strings into tokens of their own."""
    found = sorted(PYTHONS.glob(f"{version}.*/bin/python3"))
    if not found:
        pytest.skip(f"no Python {version} here")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from xenoshell.fleet.bundle import bundle; "
        "print(bundle().sha256, bundle().version)"
    )
    there = subprocess.run(
        [found[0], "-S", "-c", program, ROOT], capture_output=True, text=True, check=True, timeout=60
    )
    assert there.stdout.split() == [bundle().sha256, bundle().version]


def test_the_bundle_has_no_comments_and_is_made_once() -> None:
    assert bundle() is bundle()
    assert not any("#:" in part for part in bundle_source())


def test_host_and_wire_import_only_the_standard_library_and_each_other() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert (
                    top in sys.stdlib_module_names
                    or name == "xenoshell"
                    or name.startswith(("xenoshell.host", "xenoshell.wire"))
                )
