"""Packages come from the system's own sources, are verified, and are fetched once. apt is played by a script here."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest

from xenoshell.errors import BadInput
from xenoshell.images.packages import Packages, dependencies, kernel_parts, parse_stanzas, unpack
from xenoshell.wire.causes import Failure

APT_CACHE = """#!/bin/sh
echo "cache $*" >> {log}
case "$*" in *Dir::State=*) lists=private ;; *) lists=system ;; esac
for name; do
    [ -f "{repo}/$lists/$name" ] && cat "{repo}/$lists/$name" && echo
done
exit 0
"""
APT_GET = """#!/bin/sh
echo "get $*" >> {log}
case "$*" in *update) exit 0 ;; esac
for word; do
    case "$word" in *=*) [ -f "{repo}/debs/${{word%%=*}}.deb" ] && cp "{repo}/debs/${{word%%=*}}.deb" . ;; esac
done
[ -n "$(ls)" ] || {{ echo "E: Failed to fetch: 404 Not Found" >&2; exit 100; }}
"""


class Repository:
    """A package source with a system's and a private view of its lists."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.log = root, root / "log"
        for directory in ("bin", "debs", "system", "private"):
            (root / directory).mkdir(parents=True)
        for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", "#!/bin/sh\n")):
            (root / "bin" / name).write_text(text.format(log=self.log, repo=root))
            (root / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")

    def add(
        self, name: str, contents: bytes, depends: str = "", lists: tuple[str, ...] = ("system", "private")
    ) -> None:
        (self.root / "debs" / f"{name}.deb").write_bytes(contents)
        digest = hashlib.sha256(contents).hexdigest()
        for which in lists:
            stanza = f"Package: {name}\nVersion: 1.0\nDepends: {depends}\nDescription: x\n more\nSHA256: {digest}\n"
            (self.root / which / name).write_text(stanza)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path / "repository", monkeypatch)


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    return Packages(tmp_path / "packages", lambda _: None)


def test_what_was_fetched_once_needs_no_apt_again(
    repository: Repository, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add("busybox-static", b"a program")
    assert packages.fetch(["busybox-static"])["busybox-static"].read_bytes() == b"a program"
    assert not any("update" in call for call in repository.calls())
    monkeypatch.setenv("PATH", "/nowhere")
    assert packages.fetch(["busybox-static"])["busybox-static"].read_bytes() == b"a program"


def test_a_damaged_package_in_the_cache_is_fetched_again(repository: Repository, packages: Packages) -> None:
    repository.add("busybox-static", b"a program")
    path = packages.fetch(["busybox-static"])["busybox-static"]
    path.write_bytes(b"half")
    assert packages.fetch(["busybox-static"])["busybox-static"].read_bytes() == b"a program"


def test_when_the_system_s_lists_do_not_know_it_lists_of_our_own_are_fetched(
    repository: Repository, packages: Packages
) -> None:
    repository.add("dropbear-bin", b"ssh", lists=("private",))
    assert packages.fetch(["dropbear-bin"])["dropbear-bin"].read_bytes() == b"ssh"
    updates = [call for call in repository.calls() if call.endswith("update")]
    assert len(updates) == 1 and str(packages.directory) in updates[0]


def test_what_is_not_what_the_list_says_is_not_used(repository: Repository, packages: Packages) -> None:
    repository.add("busybox-static", b"a program")
    (repository.root / "debs" / "busybox-static.deb").write_bytes(b"another program")
    with pytest.raises(Failure, match="not what the package list says"):
        packages.fetch(["busybox-static"])


def test_a_package_that_does_not_exist_is_named(repository: Repository, packages: Packages) -> None:
    with pytest.raises(Failure, match="no package no-such-thing") as failure:
        packages.fetch(["no-such-thing"])
    assert failure.value.cause == "not-found" and "sources" in failure.value.remedy


def test_dependencies_come_too(repository: Repository, packages: Packages) -> None:
    repository.add("dropbear-bin", b"1", "libc6 (>= 2.36), zlib1g:any | zlib")
    repository.add("libc6", b"2", "dropbear-bin")
    repository.add("zlib1g", b"3")
    assert set(packages.fetch_closure(["dropbear-bin"])) == {"dropbear-bin", "libc6", "zlib1g"}


@pytest.mark.parametrize("meta", ["linux-image-cloud-amd64", "linux-image-virtual"])
def test_the_kernel_is_the_one_that_the_distribution_names(
    repository: Repository, packages: Packages, meta: str
) -> None:
    repository.add(meta, b"meta", "linux-image-6.1.0-9-x (= 6.1.2)")
    repository.add("linux-image-6.1.0-9-x", b"kernel", "kmod, linux-modules-6.1.0-9-x, initramfs-tools | dracut")
    repository.add("linux-modules-6.1.0-9-x", b"modules", "wireless-regdb")
    assert set(packages.fetch_kernel()) == {"linux-image-6.1.0-9-x", "linux-modules-6.1.0-9-x"}


def test_a_machine_without_apt_is_told_what_it_lacks(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "apt-get" else f"/usr/bin/{name}")
    with pytest.raises(BadInput, match="lacks apt-get") as error:
        packages.fetch(["busybox-static"])
    assert error.value.remedy


@pytest.mark.parametrize("filters", [True, False])
def test_nothing_of_a_package_is_written_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: bool
) -> None:
    """Python 3.11.2 has no extraction filters: ours refuses the same."""
    if not filters:
        monkeypatch.delattr(tarfile, "tar_filter", raising=False)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/keys").write_text("mine")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dpkg-deb").write_text('#!/bin/sh\ncat "$2"\n')
    (tmp_path / "bin/dpkg-deb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for link, name in (("x", "x/keys"), ("x/keys", "x/keys"), ("", "../outside/keys")):
        into = tmp_path / "into"
        with tarfile.open(tmp_path / "deb", "w") as archive:
            if link:
                member = tarfile.TarInfo(f"./{link}")
                member.type = tarfile.SYMTYPE
                member.linkname = str(tmp_path / "outside") if link == "x" else str(tmp_path / "outside/keys")
                archive.addfile(member)
            member = tarfile.TarInfo(f"./{name}")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        with pytest.raises(Failure) as caught:
            unpack(tmp_path / "deb", into)
        assert caught.value.cause == "corrupt-image"
        assert (tmp_path / "outside/keys").read_text() == "mine"
        shutil.rmtree(into, ignore_errors=True)


def test_control_files_are_read_as_they_are_written() -> None:
    text = "Package: a\nDepends: b (>= 1), c | d\nDescription: x\n Package: no\n\nPackage: b\nVersion: 2:3-4\n\n"
    assert parse_stanzas(text) == [
        {"Package": "a", "Depends": "b (>= 1), c | d", "Description": "x"},
        {"Package": "b", "Version": "2:3-4"},
    ]
    assert dependencies("b (>= 1), c | d, e:any, ") == ["b", "c", "e"] and dependencies("") == []
    assert kernel_parts("kmod, linux-image-6.1-x (= 1), linux-base") == ["linux-image-6.1-x"]
