"""What must hold within a session file, and what may be left out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from xenoshell import tomlfile
from xenoshell.session import placeholders
from xenoshell.session.model import Budget, Network, ReadyRule, Resources, Session, VmGroup
from xenoshell.tomlfile import InputError, InputErrors
from xenoshell.wire.values import VM_ID

HEAD = 'schema = 1\nname = "edge"\n'
GROUP = '[[vm]]\nname = "web"\nimage = "x"\n'


def read(text: str) -> Session:
    return tomlfile.loads(HEAD + text, Session)


def refused(text: str) -> list[InputError]:
    with pytest.raises(InputErrors) as caught:
        read(text)
    return list(caught.value.errors)


def keys(text: str) -> list[str]:
    return [error.key.removeprefix("vm[0].") for error in refused(text)]


def test_the_smallest_session_and_its_defaults() -> None:
    group = read(GROUP).vm[0]
    assert group.vm_names() == ("web",) and group.count == 1 and group.hosts == () and group.where.terms == ()
    assert group.resources == Resources(vcpus=1, memory=512 << 20, disk=None)
    assert group.network == Network(mode="user", forward=())
    assert group.ready == ReadyRule(when="none", timeout=120.0)
    assert read(GROUP).budget is None


def test_the_example_of_the_design() -> None:
    session = read("""
[budget]
max_per_hour = 0.50
max_total = 20
lease = "24h"
[[vm]]
name = "web"
image = "edge-web-v3"
count = 3
where = "region:eu rtt<80ms memory>=2GiB price<0.05/h"
spread = "region"
[vm.resources]
vcpus = 2
memory = "1GiB"
disk = "8GiB"
[vm.network]
mode = "user"
forward = [{ guest = 80 }, { guest = 22, host = 2222 }]
[vm.customise]
hostname = "{vm}.{host}"
authorized_keys = ["~/.ssh/id_ed25519.pub"]
run = ["systemctl enable --now nginx"]
[[vm.customise.file]]
path = "/srv/www/index.html"
content = "served by {vm} on {host}\\n"
[vm.ready]
when = "http"
port = 80
path = "/"
timeout = "120s"
""")
    assert session.budget == Budget(max_per_hour=Decimal("0.50"), max_total=Decimal(20), lease=86400.0)
    group = session.vm[0]
    assert session.vm_names() == ("web-1", "web-2", "web-3")
    assert (group.resources.memory, group.resources.disk) == (1 << 30, 8 << 30)
    assert [(f.guest, f.host, f.proto, f.bind) for f in group.network.forward] == [
        (80, None, "tcp", None),
        (22, 2222, "tcp", None),
    ]
    assert len(group.where.terms) == 4 and group.ready.timeout == 120.0


def test_values_are_frozen_and_hashable_where_they_are_keys() -> None:
    session = read(GROUP)
    with pytest.raises(ValidationError):
        session.vm[0].count = 2  # type: ignore[misc]
    assert hash(session) == hash(read(GROUP))


def test_python_code_gives_bytes_and_seconds_and_is_checked_just_the_same() -> None:
    assert Resources(memory=1 << 30).memory == 1 << 30
    assert Resources.model_validate({"memory": "1GiB"}).memory == 1 << 30
    for bad in ({"memory": 1000}, {"vcpus": 0}, {"disk": -1}, {"memory": True}):
        with pytest.raises(ValidationError):
            Resources.model_validate(bad)
    session = read(GROUP + "[vm.ready]\nwhen = 'none'\ntimeout = '1m'\n")
    assert Session.model_validate(session.model_dump()) == session
    assert Session.model_validate_json(session.model_dump_json(by_alias=True)) == session


@pytest.mark.parametrize("name", ["Web", "", "-a", "a-", "a_b", "a.b", "x" * 41, "wéb", "a/b", ".."])
def test_names_that_could_not_be_ids_on_a_host_are_refused(name: str) -> None:
    assert keys(GROUP.replace('"web"', f'"{name}"')) == ["name"]


def test_the_longest_names_still_make_ids() -> None:
    name = "x" * 40
    session = tomlfile.loads(
        f'schema = 1\nname = "{name}"\n[[vm]]\nname = "{name}"\nimage = "i"\ncount = 10000\n', Session
    )
    assert all(VM_ID.match(f"{session.name}.{vm}.0123abcd") for vm in session.vm_names())


def test_hosts_imply_count_and_may_repeat() -> None:
    group = read(GROUP + 'hosts = ["a", "b", "a"]\n').vm[0]
    assert group.count == 3 and group.vm_names() == ("web-1", "web-2", "web-3")
    assert read(GROUP + 'hosts = ["a"]\ncount = 1\n').vm[0].vm_names() == ("web",)
    assert keys(GROUP + 'hosts = ["a"]\ncount = 2\nspread = "host"\n') == ["count", "spread"]
    assert keys(GROUP + 'hosts = ["A B"]\n') == ["hosts[0]"]


def test_groups_and_vms_have_names_of_their_own() -> None:
    assert [e.key for e in refused(GROUP + GROUP)] == ["vm[1].name"]
    clash = refused(GROUP + "count = 3\n" + GROUP.replace('"web"', '"web-2"'))
    assert [e.key for e in clash] == ["vm[1].name"] and "web-2" in clash[0].message
    assert len(read(GROUP + "count = 3\n" + GROUP.replace('"web"', '"web-4"')).vm) == 2


def test_a_short_file_cannot_ask_for_vms_without_end() -> None:
    groups = [GROUP.replace('"web"', f'"g{n}"') + "count = 10000\n" for n in range(500)]
    assert len(read(groups[0]).vm_names()) == 10_000
    assert [e.key for e in refused("".join(groups))] == ["vm[1].count"]
    assert [e.key for e in refused(GROUP + groups[0])] == ["vm[1].count"]
    assert [e.key for e in refused(GROUP + "count = 1000000000000\n")] == ["vm[0].count"]


def test_something_must_boot() -> None:
    assert keys('[[vm]]\nname = "a"\n') == ["image"]
    assert keys('[[vm]]\nname = "a"\ninitrd = "i"\n') == ["image"]
    assert read('[[vm]]\nname = "a"\nkernel = "k"\n').vm[0].image is None
    assert [e.key for e in refused("vm = []\n")] == ["vm"]


@pytest.mark.parametrize(
    ("section", "bad"),
    [
        ('[vm.resources]\nmemory = "1000kB"\n', ["resources.memory"]),
        (
            '[vm.resources]\nmemory = "0MiB"\nvcpus = 1025\ndisk = "100B"\n',
            ["resources.memory", "resources.vcpus", "resources.disk"],
        ),
        ("[vm.resources]\nvcpus = 1.0\n", ["resources.vcpus"]),
        ("[vm.resources]\nvcpus = '1'\n", ["resources.vcpus"]),
        ("[vm.resources]\nvcpus = true\n", ["resources.vcpus"]),
        ("[vm.network]\nforward = [{ guest = 80 }, { guest = 80 }]\n", ["network.forward[1].guest"]),
        ("[vm.network]\nforward = [{ guest = 80, host = 1 }, { guest = 81, host = 1 }]\n", ["network.forward[1].host"]),
        ("[vm.network]\nforward = [{ guest = 80, bind = 'ams-1' }]\n", ["network.forward[0].bind"]),
        ("[vm.network]\nforward = [{ host = 80 }]\n", ["network.forward[0].guest"]),
        ("[vm.network]\nmode = 'bridge'\nforward = [{ guest = 80 }]\n", ["network.forward"]),
        ("[vm.network]\nmode = 'bridge'\n[vm.ready]\nwhen = 'http'\nport = 80\n", ["ready.when"]),
        ("[vm.ready]\nwhen = 'http'\n", ["ready.port"]),
        ("[vm.ready]\nwhen = 'tcp'\npath = '/x'\n", ["ready.port", "ready.path"]),
        ("[vm.ready]\nwhen = 'console'\nport = 80\n", ["ready.port"]),
        ("[vm.ready]\nwhen = 'http'\nport = 80\nmatch = 'x'\n", ["ready.match"]),
        ("[vm.ready]\nwhen = 'http'\nport = 80\npath = 'x y'\ntimeout = '0s'\n", ["ready.path", "ready.timeout"]),
        ("[vm.customise]\nhostname = '{vm}_{host}'\n", ["customise.hostname"]),
        (
            "[vm.customise]\nhostname = '{name}'\nrun = ['{vms}', 'ok {vm}']\n",
            ["customise.hostname", "customise.run[0]"],
        ),
        ("[vm.customise]\nauthorized_keys = ['']\n", ["customise.authorized_keys[0]"]),
        ("[[vm.customise.file]]\npath = '/a'\n", ["customise.file[0]"]),
        ("[[vm.customise.file]]\npath = '/a'\ncontent = ''\nsource = 'x'\n", ["customise.file[0].source"]),
        (
            "[[vm.customise.file]]\npath = '/a/../b'\ncontent = ''\nmode = '888'\nowner = 'a b'\n",
            ["customise.file[0].path", "customise.file[0].mode", "customise.file[0].owner"],
        ),
        (
            "[[vm.customise.file]]\npath = '/a'\ncontent = ''\n[[vm.customise.file]]\npath = '/a'\ncontent = ''\n",
            ["customise.file[1].path"],
        ),
        ("cmdline = 'a\\nb'\n".replace("'", '"'), ["cmdline"]),
        ("count = 10001\n", ["count"]),
        ("spread = 'planet'\n", ["spread"]),
        ("image = 1\n".replace("image", "kernel"), ["kernel"]),
    ],
)
def test_what_is_refused(section: str, bad: list[str]) -> None:
    assert keys(GROUP + section) == bad


def test_a_file_may_be_empty_but_not_nothing() -> None:
    assert read(GROUP + "[[vm.customise.file]]\npath = '/a'\ncontent = ''\n").vm[0].customise.file[0].content == ""


def test_the_same_port_as_tcp_and_udp_is_two_ports() -> None:
    assert (
        len(
            read(GROUP + "[vm.network]\nforward = [{ guest = 53 }, { guest = 53, proto = 'udp' }]\n")
            .vm[0]
            .network.forward
        )
        == 2
    )


@pytest.mark.parametrize(
    "budget",
    ["max_total = -1", "max_total = nan", "max_total = 'x'", "max_total = true", "currency = 'eur'", "lease = '10ms'"],
)
def test_what_no_budget_can_be(budget: str) -> None:
    assert keys(f"[budget]\n{budget}\n{GROUP}") == [f"budget.{budget.split()[0]}"]


def test_another_schema_is_refused() -> None:
    with pytest.raises(InputErrors, match="schema 1 only"):
        tomlfile.loads((HEAD + GROUP).replace("schema = 1", "schema = 2"), Session)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{vm} on {host} of {session}, {index}", "web-2 on ams-1 of edge, 2"),
        ("{{vm}} ${vm} ${HOME} {} { vm } {a,b} {VM} {0}", "{vm} ${vm} ${HOME} {} { vm } {a,b} {VM} {0}"),
        ('{"a": {"b": 1}} body { color: red }', '{"a": {"b": 1}} body { color: red }'),
        ("{{{vm}}}", "{{vm}}"),
    ],
)
def test_placeholders(text: str, expanded: str) -> None:
    assert placeholders.expand(text, vm="web-2", host="ams-1", session="edge", index=2) == expanded
    assert placeholders.unknown(text) == ()


def test_a_value_put_in_is_not_expanded_again() -> None:
    values: dict[str, Any] = {"vm": "{host}", "host": "h", "session": "s", "index": 1}
    assert placeholders.expand("{vm}", **values) == "{host}"


def test_a_group_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValidationError, match="something to boot"):
        VmGroup(name="web")
