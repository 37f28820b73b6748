"""A first session file to start from, and the schema that lets editors complete one."""

from __future__ import annotations

from typing import Any

from xenoshell import tomlfile
from xenoshell.session.model import Session
from xenoshell.toml_write import item

SCHEMA_ID = "http://json-schema.org/draft-07/schema#"


def template(name: str, *, image: str = "tiny", hosts: tuple[str, ...] = (), count: int | None = None) -> str:
    """A commented session file: one VM group called ``web`` that serves a page.

    ``hosts`` names the hosts, else ``count`` VMs (1 if not given) are placed. Raises `xenoshell.tomlfile.InputErrors`
    when a name is not usable, or ``count`` does not fit ``hosts``.
    """
    if hosts:
        placing = f"hosts = {item(list(hosts)).as_string()}" + ("" if count is None else f"\ncount = {count}")
        placing += '\n# where = "region:eu"           # conditions that these hosts must meet'
    else:
        placing = f'count = {1 if count is None else count}                        # or hosts = ["ams-1", "nyc-2"]\n'
        placing += '# where = "region:eu rtt<80ms memory>=2GiB price<0.05/h"\n'
        free = 'spread = "region"                # never two in one while others are free'
        placing += free if count is not None and count > 1 else f"# {free}"
    text = _TEMPLATE.format(name=item(name).as_string(), image=item(image).as_string(), placing=placing)
    tomlfile.loads(text, Session, "the new session")
    return text


_TEMPLATE = """\
# A xenoshell session. Look at it with `xenoshell check`, `quote` and `plan`; `xenoshell deploy` does it.
# Every key: all-keys.toml among the samples, or `xenoshell new --schema` for your editor.
schema = 1
name = {name}

[budget]
# max_per_hour = 0.50            # refuse to deploy above it
# max_total = 20                 # the hosts stop the VMs before it is passed
lease = "24h"                    # the hosts stop the VMs when they hear nothing for so long

[[vm]]
name = "web"
image = {image}
{placing}

[vm.resources]
vcpus = 1
memory = "256MiB"
# disk = "8GiB"                  # at least the image's; left out: the image's

[vm.network]
forward = [{{ guest = 80 }}]       # a free port of the host is chosen and reported

[vm.customise]                   # at the first boot
hostname = "{{vm}}"
# authorized_keys = ["~/.ssh/id_ed25519.pub"]
# run = ["echo hello from {{vm}} > /dev/console"]

[[vm.customise.file]]
path = "/srv/www/index.html"
content = "served by {{vm}} on {{host}}\\n"

[vm.ready]                       # when it counts as ready, rather than only running
when = "http"
port = 80
timeout = "120s"
"""


def schema() -> dict[str, Any]:
    """The JSON Schema of session files (draft 7, which editors of TOML read), with a description of every key."""
    generated = Session.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = generated.pop("$defs", {})
    return {
        "$schema": SCHEMA_ID,
        **_tidy(generated),
        "title": "xenoshell session",
        "definitions": {name: _tidy(value) for name, value in definitions.items()},
    }


def _tidy(value: Any) -> Any:
    """Without what TOML cannot say (null), and without the titles that repeat the key."""
    if isinstance(value, list):
        return [_tidy(v) for v in value]
    if not isinstance(value, dict):
        return value
    out = {
        key: _tidy(inner)
        for key, inner in value.items()
        if not (key == "default" and (inner in (None, "", []) or isinstance(inner, dict)))
    }
    choices = out.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        left = [choice for choice in choices if choice != {"type": "null"}]
        del out["anyOf"]
        out = {**left[0], **out} if len(left) == 1 else {**out, "anyOf": left}
    if isinstance(out.get("title"), str):
        del out["title"]
    if "$ref" in out and len(out) > 1:
        # Before draft 2019 nothing beside $ref counts.
        out = {"allOf": [{"$ref": out.pop("$ref")}], **out}
    return out
