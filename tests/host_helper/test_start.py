"""Starting a helper: any login shell, any Python from 3.9, noise before it, and nothing left after it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import zlib
from pathlib import Path

import pytest

from tests.host_helper.peer import further_channel, running_helper, transfer
from tests.support import eventually
from xenoshell.fleet.bundle import bundle, stub
from xenoshell.wire import frames

pytestmark = pytest.mark.integration

PYTHONS = Path("~/.pyenv/versions").expanduser()  # tests have another home


def pythons() -> list[str]:
    """Every Python from 3.9 to 3.13 there is here, by version."""
    found = {}
    candidates = [*PYTHONS.glob("3.*/bin/python3"), *map(Path, ["/usr/bin/python3"])]
    for path in candidates:
        if path.exists():
            out = subprocess.run(
                [path, "-c", "import sys;print(sys.version_info[:2])"], capture_output=True, text=True, check=False
            )
            if match := re.match(r"\((\d+), (\d+)\)", out.stdout):
                version = (int(match[1]), int(match[2]))
                if (3, 9) <= version <= (3, 13):
                    found[version] = str(path)
    return [found[v] for v in sorted(found)]


@pytest.mark.parametrize("python", pythons())
def test_every_python_from_3_9_runs_the_helper_and_takes_a_blob(python: str, tmp_path: Path) -> None:
    with running_helper(tmp_path / "s", python) as helper:
        facts = helper.hello()
        assert facts.python in subprocess.run([python, "-V"], capture_output=True, text=True, check=False).stdout
        codec = facts.codecs[0]
        digest = transfer(helper, os.urandom(5000) + bytes(1 << 20) + b"end", codec)
        assert (tmp_path / "s/blobs" / digest).stat().st_mode & 0o777 == 0o444
        assert helper.end() == 0


def test_the_stub_means_the_same_in_sh_csh_and_fish() -> None:
    command = stub(bundle(), os.urandom(16), "/srv/it's $HOME! \\ \n")
    around = (
        r'exec env "PATH=/usr/bin:/bin:\$PATH" python3 -I -S -c %s helper [0-9a-f]{32} [0-9a-f]{16} [0-9a-f]+ "\$PATH"'
    )
    quoted = re.fullmatch(around % "'([^']*)'", command)
    assert quoted
    assert not set("\n!\\$`'") & set(quoted[1])
    assert len(command) < 1000


@pytest.mark.parametrize("shell", ["dash", "bash", "csh", "tcsh", "fish", "zsh", "busybox"])
def test_login_shells_run_the_stub(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    words = (program, "sh", "-c") if shell == "busybox" else (program, "-c")
    with running_helper(tmp_path / "s p'a$c e", shell=words) as helper:
        assert helper.hello().state_dir == str(tmp_path / "s p'a$c e")


def test_what_the_first_answer_needs_is_small_enough_for_slow_links() -> None:
    """It travels with every connection; the rest only to a host that does not keep it."""
    assert len(bundle().packed) < 25 << 10
    assert len(bundle().rest) < 40_000


def test_the_rest_of_the_program_is_brought_once_and_checked(tmp_path: Path) -> None:
    rest = base64.b64encode(bundle().rest).decode()
    with running_helper(tmp_path / "s") as helper:
        _, value = helper.answer(0)
        assert value["library"] is False
        assert (
            "rest of the program"
            in helper.refused("library", rest=base64.b64encode(zlib.compress(b"x")).decode())["message"]
        )
        assert helper.refused("library", rest="no base64!")["cause"] == "bad-request"
        # what follows at once may need it already
        for stream, request in ((90, {"verb": "library", "rest": rest}), (91, {"verb": "check", "kernel": None})):
            helper.send(frames.REQUEST, stream, json.dumps(request).encode())
        assert helper.answer(90) == (frames.RESPONSE, {})
        assert helper.answer(91)[0] == frames.RESPONSE
        assert helper.end() == 0
    kept = sorted(path.name for path in (tmp_path / "s/lib").iterdir())
    assert kept[0] == f"xenoshell-{bundle().version}.py"
    (tmp_path / "s/lib" / kept[-1]).write_bytes(b"\xe3 damaged")  # compiled code is only a cache
    with running_helper(tmp_path / "s") as helper:
        assert helper.hello().library is True
        assert helper.request("check", kernel=None)["lines"]


def test_a_request_right_behind_the_rest_of_the_program_finds_it(tmp_path: Path) -> None:
    rest = base64.b64encode(bundle().rest).decode()
    requests = (90, {"verb": "library", "rest": rest}), (91, {"verb": "vm.watch"})
    for attempt in range(6):  # it was a race that every second one lost
        with running_helper(tmp_path / f"s{attempt}") as helper:
            helper.answer(0)
            helper.write(b"".join(frames.pack(frames.REQUEST, n, json.dumps(r).encode()) for n, r in requests))
            assert helper.answer(91) == (frames.RESPONSE, {})


def test_libraries_that_nobody_used_for_a_month_are_removed(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
    old, recent = (tmp_path / "s/lib" / f"xenoshell-{digit * 16}.py" for digit in "12")
    for path, days in ((old, 31), (recent, 29)):
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        eventually(lambda: not old.exists(), 20, "the old one to go")
        assert recent.exists()


def test_the_path_of_the_user_is_kept_for_finding_qemu(tmp_path: Path) -> None:
    """The stub prefers the system's python3, and only for itself."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/qemu-system-x86_64"
    fake.write_text("#!/bin/sh\necho QEMU emulator version 99.1\n")
    fake.chmod(0o755)
    with running_helper(tmp_path / "s", before=f"PATH={tmp_path}/bin:$PATH; ") as helper:
        assert helper.hello().qemu == "99.1"


def test_what_a_login_script_prints_is_skipped(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s", before="head -c 40000 /dev/zero; echo XS welcome; ") as helper:
        assert helper.hello().channel
        assert helper.noise.endswith(b"XS welcome\n")


def test_requests_may_follow_the_bundle_at_once_and_byte_by_byte(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s", send_bundle=False) as helper:
        for byte in bundle().packed + frames.pack(frames.REQUEST, 7, b'{"verb":"vm.list"}'):
            helper.write(bytes([byte]))
        assert helper.answer(0)[1]["library"] is False
        assert helper.answer(7) == (frames.RESPONSE, {"vms": []})


def test_a_damaged_bundle_is_not_run(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s", send_bundle=False, stderr=subprocess.PIPE) as helper:
        helper.write(bytes(len(bundle().packed)))
        assert helper.process.wait(10) == 1
        assert helper.process.stderr and b"arrived damaged" in helper.process.stderr.read()
    assert not (tmp_path / "s").exists()


def test_an_end_of_input_within_the_bundle_ends_the_stub(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s", send_bundle=False) as helper:
        helper.write(bundle().packed[:100])
        assert helper.end() == 3


def test_an_old_python_says_so(tmp_path: Path) -> None:
    old = [p for v in ("3.6.15", "3.7.16", "3.8.18") if (p := PYTHONS / v / "bin/python3").exists()]
    if not old:
        pytest.skip("no old Python here")
    for python in old:
        with running_helper(tmp_path / "s", str(python), send_bundle=False, stderr=subprocess.PIPE) as helper:
            assert helper.process.wait(10) == 1
            assert helper.process.stderr and b"python3 >= 3.9 is needed" in helper.process.stderr.read()


def test_a_helper_that_ends_leaves_no_socket_and_one_that_was_killed_is_cleaned_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with running_helper(tmp_path / "s") as first:
        killed = Path(first.hello().channel)
        first.process.kill()
        first.process.wait(10)
        assert killed.exists() and killed.is_relative_to(runtime)
    with running_helper(tmp_path / "s") as second:
        ended = Path(second.hello().channel)
        assert not killed.parent.exists()
        assert ended.exists() and len(str(ended)) < 100
        assert ended.stat().st_mode & 0o777 == 0o600 and ended.parent.stat().st_mode & 0o777 == 0o700
        assert second.end() == 0
    assert list(runtime.iterdir()) == []


def test_a_signal_ends_it_cleanly(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s") as helper:
        path = Path(helper.hello().channel)
        helper.process.send_signal(signal.SIGTERM)
        assert helper.process.wait(10) == 0
        assert not path.parent.exists()


def test_a_helper_whose_client_has_fallen_silent_ends_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was cut, not closed, would keep it for hours, and what it locks."""
    from xenoshell.host import helper, statedir
    from xenoshell.host.channel import Channel
    from xenoshell.host.streams import Session

    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(number))
    monkeypatch.setattr(helper, "_LISTEN_S", 0.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    one = helper.Helper(statedir.open_state_dir(str(tmp_path / "s")), str(tmp_path / "none"))
    try:
        silent, talks = (Session(Channel(0, 1)) for _ in "12")
        one._sessions += [silent, talks]
        silent.channel.heard -= helper._SILENCE_S + 1
        threading.Timer(0.05, lambda: setattr(talks.channel, "heard", silent.channel.heard)).start()
        began = time.monotonic()
        one._listen()
        assert signals == [signal.SIGTERM] and time.monotonic() - began >= 0.05
    finally:
        one._sessions.clear()
        one.close()


def test_the_end_of_the_connection_ends_the_further_channels(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s") as helper, further_channel(helper.hello()) as channel:
        assert channel.request("vm.list") == {"vms": []}
        assert helper.end() == 0
        assert channel.next() is None


def test_the_state_directory_is_private_and_may_not_be_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        os.chown(tmp_path / "s", 12345, 12345)
        with running_helper(tmp_path / "s") as helper:
            type_, error = helper.answer(0)
            assert type_ == frames.ERROR and "not a directory that belongs to user" in error["message"]


def test_a_further_helper_starts_fast(tmp_path: Path) -> None:
    for _ in range(2):
        with running_helper(tmp_path / "s", "/usr/bin/python3") as helper:
            helper.hello()
            fields = Path(f"/proc/{helper.process.pid}/stat").read_text().rpartition(")")[2].split()
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    assert cpu < 0.2  # 0.06 on an idle machine


def test_the_bundle_is_stored_for_supervisors_and_runs_from_there(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
    (library,) = (tmp_path / "s/lib").glob("*.py")
    assert library.name == f"xenoshell-{bundle().version}.py"
    done = subprocess.run(["python3", "-I", "-S", library, "supervise"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage:" in done.stderr
    done = subprocess.run(
        ["python3", "-I", "-S", library, "sweep", str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_tracebacks_from_the_bundle_show_true_lines(tmp_path: Path) -> None:
    """What a person sees of a defect on a host points into this repository's files."""
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        shutil.rmtree(tmp_path / "s/blobs")
        error = helper.refused("facts")
        assert error["cause"] == "internal"
        file, line = re.findall(r'File "<bundle>/(xenoshell/host/store\.py)", line (\d+)', error["message"])[-1]
        source = Path(__file__).parents[2].joinpath(file).read_text().splitlines()[int(line) - 1]
        assert source.strip() in error["message"]
        assert "os.listdir" in source
    eventually(lambda: not list(Path("/tmp").glob(f"xenoshell-{os.geteuid()}-{helper.process.pid}-*")))
