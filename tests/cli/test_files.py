"""Session files: made, checked, quoted; facts on stdout, words on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, process
from xenoshell.images.manifest import Manifest
from xenoshell.images.store import ImageStore
from xenoshell.paths import Paths


@pytest.fixture
def image(paths: Paths, tmp_path: Path) -> str:
    """An image of one small disk and a kernel; it would not boot, which no quote asks."""
    store = ImageStore(paths.images)
    for name, size in (("disk", 1 << 20), ("kernel", 1 << 16)):
        (tmp_path / name).write_bytes(b"\x01" * size)
    disk, kernel = (store.add_blob(tmp_path / name) for name in ("disk", "kernel"))
    store.put(Manifest(arch="x86_64", disk=disk, kernel=kernel, cmdline="quiet"), "small")
    return "small"


def test_a_new_file_is_right(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    made = run("new", file)
    assert (made.code, made.out) == (0, "")
    assert str(file) in made.err
    done = run("check", file)
    assert done.code == 0
    assert "session site, 1 VM: web" in done.out
    facts = json.loads(run("check", file, "--json").out)
    assert facts["session"] == "site"
    assert facts["vms"] == ["web"]


def test_a_file_that_is_there_is_not_written_over(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text("precious")
    done = run("new", file)
    assert done.code == 2
    assert "--force" in done.err
    assert file.read_text() == "precious"
    assert run("new", file, "--force").code == 0


def test_all_errors_of_a_file_at_once_with_line_key_and_nearest(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    run("new", file)
    file.write_text(file.read_text().replace("count = 1", "cuont = 1").replace('"256MiB"', '"256mb"'))
    done = run("check", file)
    assert done.code == 2
    assert done.out == ""
    lines = file.read_text().splitlines()
    first = next(i for i, text in enumerate(lines, 1) if "cuont" in text)
    second = next(i for i, text in enumerate(lines, 1) if "256mb" in text)
    assert f"{file}:{first}" in done.err and "did you mean count?" in done.err
    assert f"{file}:{second}" in done.err and "MiB" in done.err


def test_a_missing_file_is_bad_input(run: Run, tmp_path: Path) -> None:
    for command in ("check", "quote", "plan", "deploy"):
        done = run(command, tmp_path / "none.toml")
        assert done.code == 2, command
        assert "none.toml" in done.err


def test_stdout_is_the_file_or_the_schema_alone(run: Run) -> None:
    text = run("new", "-")
    assert text.err == ""
    assert text.out.startswith("#")
    schema = json.loads(run("new", "--schema").out)
    assert "vm" in schema["properties"]


def test_a_quote_without_network(run: Run, tmp_path: Path, image: str, paths: Paths) -> None:
    file = tmp_path / "site.toml"
    run("hosts", "add", "ams", "root@ams.example", "--city", "Amsterdam", "--region", "eu")
    hosts = paths.hosts_file
    hosts.write_text(hosts.read_text() + '[host.price]\ncurrency = "EUR"\nvcpu_hour = 0.01\nmemory_gib_hour = 0.02\n')
    run("new", file, "--image", image, "--host", "ams")
    done = run("quote", file)
    assert done.code == 0, done.err
    assert "ams" in done.out and "Amsterdam" in done.out
    assert "0.015 EUR" in done.out  # a vCPU and a quarter of a GiB
    document = json.loads(run("quote", file, "--json").out)
    assert document["per_hour"] == {"EUR": "0.015"}
    assert document["within_budget"] is True


def test_a_budget_refuses_with_4_and_still_shows_the_quote(run: Run, tmp_path: Path, image: str, paths: Paths) -> None:
    file = tmp_path / "site.toml"
    run("hosts", "add", "ams", "root@ams.example")
    paths.hosts_file.write_text(paths.hosts_file.read_text() + '[host.price]\ncurrency = "EUR"\nvcpu_hour = 1\n')
    run("new", file, "--image", image, "--host", "ams")
    file.write_text(file.read_text().replace("# max_per_hour = 0.50", "max_per_hour = 0.50"))
    for words in (("quote", file), ("quote", file, "--json")):
        done = run(*words)
        assert done.code == 4
        assert "over-budget" in done.err
        assert "ams" in done.out
    assert run("deploy", file).code == 4


def test_an_unknown_host_and_an_unknown_image_are_told(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    run("hosts", "add", "ams", "root@ams.example")
    run("new", file, "--host", "amz")
    assert "no host is called amz" in run("check", file).err
    done = run("quote", file)
    assert done.code == 2
    assert "ams" in done.err  # the nearest
    run("new", file, "--host", "ams", "--force")
    done = run("quote", file)
    assert done.code == 3
    assert "image-missing" in done.err


def test_check_tells_the_unknown_host_beside_the_errors_and_as_json(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    run("hosts", "add", "ams-1", "root@ams.example")
    run("new", file, "--host", "ams-9", "--image", "none")
    file.write_text(file.read_text().replace("vcpus", "vcpu").replace('"256MiB"', '"256 megs"'))
    done = run("check", file)
    assert done.code == 2
    assert "did you mean vcpus?" in done.err and "megs" in done.err
    assert "no host is called ams-9 (yet); did you mean ams-1?" in done.err
    facts = run("check", file, "--json")
    assert facts.code == 2
    document = json.loads(facts.out)
    assert document["right"] is False
    assert [error["key"] for error in document["errors"]] == ["vm[0].resources.vcpu", "vm[0].resources.memory"]
    assert (document["unknown_hosts"], document["unknown_images"]) == (["ams-9"], ["none"])


@pytest.mark.parametrize(
    "text", ["vm = 3", "[[vm]]\nhosts = 7", "[[vm]]\nhosts = [1]\nimage = []", "vm = [1]", "=", "\x00"]
)
def test_check_survives_any_file(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "site.toml"
    file.write_text(text)
    assert run("check", file).code == 2


def test_many_vms_are_spread_over_regions(run: Run) -> None:
    assert '\nspread = "region"' in run("new", "-", "--count", "3").out
    assert '\n# spread = "region"' in run("new", "-").out


def test_only_a_missing_session_file_is_to_be_made_with_new(run: Run, tmp_path: Path) -> None:
    assert "xenoshell new" in run("check", tmp_path / "none.toml").err


def test_a_process_of_its_own_does_the_same(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    assert process("new", file).code == 0
    file.write_text("schema = 1\nname = 3\n")
    done = process("check", file)
    assert done.code == 2
    assert done.out == ""
    assert f"{file}:2" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("accel", ["fast", "", "KVM"])
def test_acceleration_is_one_of_three(run: Run, tmp_path: Path, accel: str) -> None:
    run("new", tmp_path / "a.toml")
    done = run("plan", tmp_path / "a.toml", "--accel", accel)
    assert done.code == 2
    assert "auto, kvm, tcg" in done.err
