"""Debian and Ubuntu packages by name, fetched as an ordinary user from the system's own sources, and kept.

apt verifies them. It works here on directories of its own, and reads the system's sources, keys and (first) lists.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from xenoshell.errors import BadInput
from xenoshell.wire.causes import Failure

Progress = Callable[[str], None]

DOWNLOAD_S = 900.0
QUERY_S = 60.0
#: Debian's words for machines, by ours.
DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
#: The kernels without drivers for real hardware: Debian's, then Ubuntu's.
KERNELS = ("linux-image-cloud-{arch}", "linux-image-virtual")


@dataclass(frozen=True)
class Package:
    """A package in the cache: ``file`` lies in the cache's ``debs`` directory."""

    name: str
    version: str
    file: str
    sha256: str
    depends: str


class Packages:
    """The package cache in ``directory``. Several processes may use it; one at a time changes it."""

    def __init__(self, directory: Path, progress: Progress, *, refresh: bool = False) -> None:
        self.directory = directory
        self._progress = progress
        self._refresh = refresh  # fetch what is newer, where otherwise the cache's own do

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """The .deb file of each package named. What the cache has is used without the network.

        Raises `BadInput` on a system without apt, `Failure` (not-found) when apt finds or fetches one of them not."""
        packages = self._packages(names)
        return {name: self.directory / "debs" / packages[name].file for name in names}

    def fetch_closure(self, names: Sequence[str]) -> dict[str, Path]:
        """The packages named and all that they depend on (of alternatives the first)."""
        found: dict[str, Path] = {}
        wanted = list(names)
        while wanted:
            found |= self.fetch(wanted)
            deeper = [n for p in self._packages(wanted).values() for n in dependencies(p.depends)]
            wanted = [n for n in dict.fromkeys(deeper) if n not in found]
        return found

    def fetch_kernel(self, arch: str = "x86_64") -> dict[str, Path]:
        """The packages that hold the distribution's kernel for virtual machines and its modules."""
        names = [k.format(arch=DEBIAN_ARCH[arch]) for k in KERNELS]
        meta = self._first(names)
        found: dict[str, Path] = {}
        wanted = kernel_parts(meta.depends)
        while wanted:
            found |= self.fetch(wanted)
            deeper = [n for p in self._packages(wanted).values() for n in kernel_parts(p.depends)]
            wanted = [n for n in dict.fromkeys(deeper) if n not in found]
        if not found:
            raise Failure("not-found", f"package {meta.name} names no kernel (its dependencies: {meta.depends!r})", "")
        return found

    def _first(self, names: Sequence[str]) -> Package:
        problems = []
        for name in names:
            try:
                return self._packages([name])[name]
            except Failure as failure:
                problems.append(failure.message)
        raise Failure("not-found", "; ".join(problems), SOURCES_REMEDY)

    def _packages(self, names: Sequence[str]) -> dict[str, Package]:
        with self._locked():
            index = self._read_index()
            missing = [n for n in names if self._refresh or not self._whole(index.get(n))]
            if missing:
                require_apt()
                index |= self._download(missing)
                self._write_index(index)
            return {name: index[name] for name in names}

    def _whole(self, package: Package | None) -> bool:
        if package is None:
            return False
        try:
            return sha256_of(self.directory / "debs" / package.file) == package.sha256
        except FileNotFoundError:
            return False

    def _download(self, names: Sequence[str]) -> dict[str, Package]:
        """Fetch packages with the system's lists, or, if these are missing or too old, with lists of our own."""
        self._progress(f"fetching packages: {' '.join(names)}")
        first = ""
        for private in (False, True):
            options = apt_options(self.directory, private_lists=private)
            if private:
                self._progress("fetching package lists (the system's are missing or old)")
                run_apt(["apt-get", *options, "-q", "update"], DOWNLOAD_S)  # one source may fail: the download tells
            problem, found = self._try(names, options)
            if not problem:
                return found
            first = first or problem
        problem = problem or first
        raise Failure("not-found", f"apt cannot fetch {', '.join(names)}: {problem}", SOURCES_REMEDY)

    def _try(self, names: Sequence[str], options: list[str]) -> tuple[str, dict[str, Package]]:
        shown = run_apt(["apt-cache", *options, "show", "--no-all-versions", *names], QUERY_S)
        stanzas = {s["Package"]: s for s in parse_stanzas(shown.stdout) if "SHA256" in s}
        unknown = [n for n in names if n not in stanzas]
        if unknown:
            return f"the sources know no package {', '.join(unknown)}", {}
        temporary = self.directory / "fetching"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o755)
        exact = [f"{n}={stanzas[n]['Version']}" for n in names]
        done = run_apt(["apt-get", *options, "-q", "download", *exact], DOWNLOAD_S, cwd=temporary)
        if done.returncode != 0:
            return last_lines(done.stderr), {}
        by_digest = {sha256_of(path): path for path in sorted(temporary.iterdir())}
        found = {}
        for name in names:
            stanza = stanzas[name]
            path = by_digest.get(stanza["SHA256"])
            if path is None:
                return f"what apt fetched for {name} is not what the package list says", {}
            found[name] = Package(name, stanza["Version"], path.name, stanza["SHA256"], stanza.get("Depends", ""))
            path.rename(self.directory / "debs" / path.name)
        shutil.rmtree(temporary)
        return "", found

    def _read_index(self) -> dict[str, Package]:
        try:
            entries = json.loads((self.directory / "index.json").read_bytes())
            return {name: Package(**entry) for name, entry in entries.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}  # a cache: what cannot be read is fetched again

    def _write_index(self, index: dict[str, Package]) -> None:
        temporary = self.directory / "index.json.new"
        temporary.write_text(json.dumps({name: asdict(p) for name, p in sorted(index.items())}, indent=1))
        temporary.rename(self.directory / "index.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        (self.directory / "debs").mkdir(parents=True, exist_ok=True)
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


SOURCES_REMEDY = "check the network and the system's package sources (`apt-get update` as root shows what is wrong)"


def apt_options(directory: Path, *, private_lists: bool) -> list[str]:
    """Options with which apt-get and apt-cache write only below ``directory`` and need no root."""
    cache, state = directory / "apt" / "cache", directory / "apt" / "state"
    for part in (cache / "archives" / "partial", state / "lists" / "partial"):
        part.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "Dir::Cache": str(cache),
        "Dir::State::status": str(state / "status"),
        "APT::Sandbox::User": "",  # apt would drop to a user who cannot write here
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "APT::Update::Post-Invoke": "",
    }
    if private_lists:
        options["Dir::State"] = str(state)
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def require_apt(*more: str) -> None:
    """Raises `BadInput` naming the programs that are missing, unless apt, dpkg-deb and ``more`` are installed."""
    missing = [p for p in ("apt-get", "apt-cache", "dpkg-deb", *more) if shutil.which(p) is None]
    if missing:
        raise BadInput(
            f"this template is made of Debian or Ubuntu packages, and this machine lacks {', '.join(missing)}",
            "build it on a Debian or Ubuntu machine (or install these programs)",
        )


def run_apt(command: list[str], timeout_s: float, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run an apt program, in English, without questions. Raises `Failure` (timeout) when it takes too long."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, cwd=cwd,
            env=environment, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failure("timeout", f"{command[0]} did not finish within {timeout_s:.0f} s", SOURCES_REMEDY) from None


def parse_stanzas(text: str) -> list[dict[str, str]]:
    """The paragraphs of a Debian control file, without the continuation lines."""
    return [
        dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", stanza, re.MULTILINE))
        for stanza in text.split("\n\n")
        if stanza.startswith("Package:")
    ]


def dependencies(depends: str) -> list[str]:
    """The packages in a Depends field: of alternatives the first, without versions and architectures."""
    names = [part.split("|")[0].split("(")[0].split(":")[0].strip() for part in depends.split(",")]
    return [name for name in names if name]


def kernel_parts(depends: str) -> list[str]:
    """Those of `dependencies` that hold a kernel or its modules."""
    return [name for name in dependencies(depends) if re.match(r"linux-(image|modules)-\d", name)]


def unpack(deb: Path, into: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Extract the files of a package whose paths (such as ``usr/bin/x``) are wanted, with links and modes, without
    owners. Raises `Failure` (corrupt-image) for a damaged package."""
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                member.name = member.name.removeprefix("./")
                if wanted(member.name) and not member.isdir():
                    _extract(archive, member, into)
        process.stdout.read()
    except tarfile.TarError as error:
        raise Failure("corrupt-image", f"package {deb}: {error}", f"remove {deb} and try again") from None
    finally:
        process.stdout.close()
        status = process.wait()
    if status != 0:
        raise Failure("corrupt-image", f"package {deb}: dpkg-deb failed ({status})", f"remove {deb} and try again")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    """Extract one member as our own, never outside ``into``. Raises `tarfile.TarError` for a path that leaves it."""
    if hasattr(tarfile, "tar_filter"):
        archive.extract(member, into, filter="tar")
        return
    # Python 3.11.2, which Debian 12 has, knows no filters yet: what they refuse is refused here.
    # (Links of earlier members count: what is written through them leaves the package as well.)
    top = os.path.realpath(into)
    inside = os.path.realpath(into / member.name).startswith(top + os.sep)
    if member.name.startswith("/") or ".." in member.name.split("/") or not inside:
        raise tarfile.ExtractError(f"{member.name!r} leads out of the package")
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    archive.extract(member, into)


def last_lines(text: str, count: int = 3) -> str:
    """The last lines of a program's complaint, in one."""
    return "; ".join(line.strip() for line in text.strip().splitlines()[-count:]) or "no reason given"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
