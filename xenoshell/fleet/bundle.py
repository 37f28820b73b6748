"""The helper as one file: every module of `xenoshell.wire` and `xenoshell.host`, and the shell command that starts it.

The bundle is Python source that holds the modules' sources and an importer for them. It runs in two ways: the `stub` on
a fresh host reads it, packed, from its standard input; and the helper stores it as a file, from which supervisors run.
Comments and docstrings are taken out and line numbers kept, so that tracebacks from hosts point into this repository.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tokenize
import zlib
from dataclasses import dataclass
from importlib import resources

#: Runs first in the bundle, on the host. ``MODULES`` (name -> source) precedes it; ``__main__`` follows from it.
LOADER = """
import sys
from importlib.machinery import ModuleSpec
class Loader:
    def __init__(self, modules, text):
        self.modules, self.text = modules, text
    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        spec = ModuleSpec(name, self, origin=self.file(name), is_package=self.is_package(name))
        spec.has_location = True
        return spec
    def is_package(self, name):
        return any(other.startswith(name + ".") for other in self.modules)
    def file(self, name):
        return "<bundle>/" + name.replace(".", "/") + ("/__init__.py" if self.is_package(name) else ".py")
    def create_module(self, spec):
        return None
    def get_source(self, name):
        return self.modules[name]
    def exec_module(self, module):
        name = module.__name__
        exec(compile(self.modules[name], self.file(name), "exec", dont_inherit=True), module.__dict__)
def show(kind, error, trace):
    import traceback
    traceback.print_exception(kind, error, trace)
sys.excepthook = show
sys.meta_path.insert(0, Loader(MODULES, globals().get("TEXT", "")))
from xenoshell.host.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

_PACKAGES = ("xenoshell.wire", "xenoshell.host")
_STATEMENT_STARTS = (
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.COMMENT,
)


@dataclass(frozen=True)
class Bundle:
    """The packed (zlib) bundle and the SHA-256 of the packed bytes, in hexadecimal."""

    packed: bytes
    sha256: str


def stripped(source: str) -> str:
    """Python ``source`` without comments and docstrings. Every statement keeps its line number.

    Works on token positions only, so it does not matter how the tokenizer of this Python cuts up f-strings.
    """
    lines = source.splitlines()
    cuts: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    previous = tokenize.ENCODING
    depth = 0
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if token.type == tokenize.COMMENT:
            cuts.append((token.start, token.end, ""))
        elif (
            token.type == tokenize.STRING
            and depth == 0
            and previous in _STATEMENT_STARTS
            and following.type in (tokenize.NEWLINE, tokenize.COMMENT)
        ):
            # a docstring may be the whole body of a class: a constant takes its place, except at module level,
            # where `from __future__` must stay the first statement
            cuts.append((token.start, token.end, "0" if token.start[1] else ""))
        previous = token.type
    for start, end, instead in reversed(cuts):
        first, last = start[0] - 1, end[0] - 1
        tail = lines[last][end[1] :]
        lines[first] = lines[first][: start[1]] + instead + (tail if first == last else "")
        if first != last:
            lines[first + 1 : last + 1] = [""] * (last - first - 1) + [tail.strip()]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def bundle_source() -> str:
    """The bundle's Python source."""
    modules = {"xenoshell": resources.files("xenoshell").joinpath("__init__.py").read_text()}
    for package in _PACKAGES:
        for item in sorted(resources.files(package).iterdir(), key=lambda item: item.name):
            name, dot, suffix = item.name.partition(".")
            if dot and suffix == "py":
                modules[package if name == "__init__" else f"{package}.{name}"] = item.read_text()
    body = "".join(f" {name!r}: {stripped(source)!r},\n" for name, source in modules.items())
    return f"MODULES = {{\n{body}}}\n{LOADER}"


@functools.cache
def bundle() -> Bundle:
    """The bundle of this installation; made once a process (some 50 ms)."""
    packed = zlib.compress(bundle_source().encode(), 9)
    return Bundle(packed, hashlib.sha256(packed).hexdigest())


def stub(bundle: Bundle, preamble: bytes, state_dir: str | None) -> str:
    """The shell command that starts the helper on a host; ``bundle.packed`` must then come on its standard input.

    The helper writes ``preamble`` (16 random bytes), then frames. The command means the same in sh, csh and fish: one
    line, no ``!``, backslash, dollar or single quote within the quotes; the arguments are hexadecimal.
    A Python older than 3.9 exits with status 1 and a line on standard error that says so.
    """
    if len(preamble) != 16:
        raise ValueError("the preamble has 16 bytes")
    size = len(bundle.packed)
    code = (
        "import os,sys,zlib;"
        'sys.version_info<(3,9)and sys.exit("xenoshell: python3 >= 3.9 is needed, here is "+sys.version[:6]);'
        "from hashlib import sha256;"
        f"p=bytearray();[p.extend(os.read(0,{size}-len(p))or os._exit(3))for _ in iter(lambda:len(p)<{size},False)];"
        f'sha256(p).hexdigest()=="{bundle.sha256}"or sys.exit("xenoshell: the helper arrived damaged");'
        'TEXT=zlib.decompress(p).decode();exec(compile(TEXT,"<bundle>","exec"))'
    )
    where = state_dir.encode().hex() if state_dir else "-"
    return f"exec python3 -I -S -c '{code}' helper {preamble.hex()} {bundle.sha256[:16]} {where}"
