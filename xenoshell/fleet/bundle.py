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

#: Between the modules and `LOADER`: where the rest goes in to make the library.
MARK = "#--\n"

#: Runs first, on the host. ``MODULES`` (name -> source) precedes it; ``__main__`` follows from it. What the core lacks
#: is read from the library once that is there; beside it, compiled code may be kept.
LOADER = """
import _thread, sys
from importlib.machinery import ModuleSpec
class Loader:
    library = ""
    def __init__(self, modules, text):
        self.modules, self.text, self.codes, self.lock = modules, text, {}, _thread.allocate_lock()
    def find_spec(self, name, path=None, target=None):
        if name not in self.modules and not self.more(name):
            return None
        spec = ModuleSpec(name, self, origin=self.file(name), is_package=self.is_package(name))
        spec.has_location = True
        return spec
    def more(self, name):
        if not name.startswith("xenoshell."):
            return False
        with self.lock:
            if self.library:
                self.recall()
                with open(self.library, encoding="utf-8") as file:
                    head = file.read().partition("\\n#--\\n")[0]
                self.library, scope = "", {}
                exec(compile(head, "<library>", "exec"), scope)
                self.modules.update(scope["MODULES"])
        return name in self.modules
    def recall(self):
        import marshal
        try:
            with open("%s.%s" % (self.library, sys.implementation.cache_tag), "rb") as file:
                self.codes = marshal.load(file)
        except (OSError, EOFError, ValueError, TypeError):
            pass
    def is_package(self, name):
        return any(other.startswith(name + ".") for other in self.modules)
    def file(self, name):
        return "<bundle>/" + name.replace(".", "/") + ("/__init__.py" if self.is_package(name) else ".py")
    def create_module(self, spec):
        return None
    def get_source(self, name):
        return self.modules[name]
    def code(self, name):
        return compile(self.modules[name], self.file(name), "exec", dont_inherit=True)
    def exec_module(self, module):
        exec(self.codes.get(module.__name__) or self.code(module.__name__), module.__dict__)
def show(kind, error, trace):
    import traceback
    traceback.print_exception(kind, error, trace)
sys.excepthook = show
loader = Loader(MODULES, globals().get("TEXT", ""))
if not loader.text:
    loader.library = __file__
    loader.recall()
    loader.library = ""
sys.meta_path.insert(0, loader)
from xenoshell.host.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

#: What a helper needs to say hello; the rest is for those who ask for more.
CORE = frozenset(
    ["xenoshell", "xenoshell.wire", "xenoshell.host"]
    + [f"xenoshell.wire.{name}" for name in ("causes", "codec", "frames", "tree", "values")]
    + [
        f"xenoshell.host.{name}"
        for name in (
            *("__main__", "channel", "facts", "helper", "library", "locks", "params", "proc", "proofs", "rendezvous"),
            *("statedir", "store", "streams", "transfer", "unpack", "vmdir", "vms"),
        )
    ]
)

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
    """``packed``: the core (zlib), and the SHA-256 of these bytes in hexadecimal. ``rest``: the other part, packed too.
    ``version``: 16 hexadecimal digits that name both together."""

    packed: bytes
    sha256: str
    rest: bytes
    version: str


def stripped(source: str) -> str:
    """Python ``source`` without comments and docstrings, indented by single spaces; statements keep their line numbers.

    Works on token positions only, so it does not matter how the tokenizer of this Python cuts up f-strings.
    """
    lines = source.splitlines()
    cuts: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    within: set[int] = set()  # lines that begin inside a string, whose indentation means something
    previous = tokenize.ENCODING
    depth = 0
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if token.end[0] > token.start[0] and token.type not in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT):
            within.update(range(token.start[0] + 1, token.end[0] + 1))
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
    return (
        "\n".join(line if number in within else _narrow(line.rstrip()) for number, line in enumerate(lines, start=1))
        + "\n"
    )


def _narrow(line: str) -> str:
    text = line.lstrip(" ")
    return " " * ((len(line) - len(text)) // 4) + text


def sources() -> dict[str, str]:
    """Module name -> source as it travels, of every module that runs on hosts."""
    modules = {"xenoshell": resources.files("xenoshell").joinpath("__init__.py").read_text()}
    for package in _PACKAGES:
        for item in sorted(resources.files(package).iterdir(), key=lambda item: item.name):
            name, dot, suffix = item.name.partition(".")
            if dot and suffix == "py":
                modules[package if name == "__init__" else f"{package}.{name}"] = item.read_text()
    return {name: stripped(source) for name, source in modules.items()}


def bundle_source() -> tuple[str, str]:
    """The Python source of the core and of the rest."""
    modules = sources()
    core = {name: source for name, source in modules.items() if name in CORE}
    rest = {name: source for name, source in modules.items() if name not in CORE}
    return f"MODULES = {_literal(core)}\n{MARK}{LOADER}", f"MODULES.update({_literal(rest)})\n"


def _literal(modules: dict[str, str]) -> str:
    return "{\n" + "".join(f" {name!r}: {source!r},\n" for name, source in modules.items()) + "}"


@functools.cache
def bundle() -> Bundle:
    """The bundle of this installation; made once a process (some 50 ms)."""
    core, rest = bundle_source()
    packed = zlib.compress(core.encode(), 9)
    version = hashlib.sha256((core + rest).encode()).hexdigest()[:16]
    return Bundle(packed, hashlib.sha256(packed).hexdigest(), zlib.compress(rest.encode(), 9), version)


def stub(bundle: Bundle, preamble: bytes, state_dir: str | None) -> str:
    """The shell command that starts the helper on a host; ``bundle.packed`` must then come on its standard input.

    The helper writes ``preamble`` (16 random bytes), then frames. The command means the same in sh, csh and fish: one
    line, no ``!``, backslash, dollar or single quote within the single quotes; the arguments are hexadecimal, but for
    the last: the user's own PATH, which the helper restores. The system's python3 goes before what a shell's start-up
    files put first: those of version managers are slow, or too old.
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
    arguments = f"helper {preamble.hex()} {bundle.version} {where}"
    return f'exec env "PATH=/usr/bin:/bin:$PATH" python3 -I -S -c \'{code}\' {arguments} "$PATH"'
