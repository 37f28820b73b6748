"""What is kept apart: a quick command line from slow libraries, the host's code from everything but Python itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import xenoshell

PACKAGE = Path(xenoshell.__file__).parent
#: Import of these takes longer than a person waits for `--help`.
SLOW = {"asyncssh", "cryptography", "textual", "zstandard"}
#: The version is in the package itself, which the bundle carries too.
VERSION = ("xenoshell", "xenoshell.__version__")

HOSTS = """
[[host]]
name = "ams-1"
ssh = "nobody@127.0.0.1:1"
[host.price]
currency = "EUR"
vcpu_hour = 0.01
"""
SESSION = """
schema = 1
name = "fenced"
[[vm]]
name = "web"
kernel = "kernel"
hosts = ["ams-1"]
[vm.resources]
vcpus = 1
memory = "64MiB"
[vm.ready]
when = "none"
"""
RUN = """
import json, sys
from xenoshell.cli import main
sys.argv = ["xenoshell", *sys.argv[1:]]
try:
    code = main()
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps({"code": code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.mark.parametrize(
    "words",
    [("--help",), ("new", "another.toml"), ("check", "session.toml"), ("quote", "session.toml", "--json")],
    ids=lambda words: words[0],
)
def test_quick_commands_load_no_slow_library(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config" / "hosts.toml").write_text(HOSTS)
    (tmp_path / "session.toml").write_text(SESSION)
    (tmp_path / "kernel").write_bytes(b"a kernel, of a kind")
    command = [sys.executable, "-c", RUN, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["code"] in (0, None), done.stderr
    assert not SLOW & set(last["modules"])


def host_modules() -> list[Path]:
    return sorted([*(PACKAGE / "host").glob("*.py"), *(PACKAGE / "wire").glob("*.py")])


def test_there_are_host_modules_to_look_at() -> None:
    assert len(host_modules()) > 10


@pytest.mark.parametrize("module", host_modules(), ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_host_modules_import_only_python_itself_and_each_other(module: Path) -> None:
    tree = ast.parse(module.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import would tell the bundle nothing"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            ours = name in VERSION or name.startswith(("xenoshell.host", "xenoshell.wire"))
            assert ours or name.partition(".")[0] in sys.stdlib_module_names, f"line {node.lineno}: {name}"


def test_host_modules_run_with_no_package_installed_at_all() -> None:
    names = [f"xenoshell.{path.parent.name}.{path.stem}" for path in host_modules() if path.stem != "__main__"]
    program = (
        f"import importlib, sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(len([n for n, m in sys.modules.items() if 'site-packages' in (getattr(m, '__file__', None) or '')]))"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
