"""docs/configuration.md: the settings as the classes have them, in Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from enforcer.cli import known

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["reference"]

_HEAD: Final = """\
# Configuration

<!-- Written by `metergate config reference > docs/configuration.md`. -->

Every process reads its settings from the environment when it starts, and ends with status 78 and a line that names
what is wrong. `metergate config check` says the same beforehand, of the environment or of `--env-file FILE`, and finds
names that nobody reads; `metergate config show` lists what holds and where it comes from. `metergate up` makes all of
these itself.

What is secret need not be in the environment: `METERGATE_SECRETS_DIR` names a folder with a file for each such setting,
named like it in small letters, such as `metergate_internal_token`. Secrets of Docker and Kubernetes are mounted so.

Times are `HH:MM:SS`, or ISO 8601 such as `PT12H` and `P2D`. The relay and the rollup are roles of the meter.
"""

_REDIS: Final = """\
## Redis: one server, Sentinel, Cluster

`METERGATE_REDIS_URL` says which. All processes of a deployment need the same.

| | URL | what to know |
|---|---|---|
| one server | `redis://:password@host:6379/0`, `rediss://…`, `unix:///path` | `maxmemory-policy noeviction` is demanded; without `appendfsync always` a power loss takes what was acknowledged last |
| Sentinel | `redis+sentinel://[user:password@]host:26379,host:26379/name[/db]` | The addresses are the Sentinels', `name` is what they call the primary; user and password are the primary's. After a failover, calls are answered when the replica has been held against the records; what replication had not carried over is named by the audit. `down-after-milliseconds` bounds how soon that is: [guarantees.md](guarantees.md) has measured times |
| Cluster | `redis+cluster://[user:password@]host:port,host:port` | Some of its nodes, which tell of the others; `rediss+cluster://` over TLS. A bucket is one slot; it may move, and its node may fail over, while checks go on. Set `cluster-require-full-coverage no`, else one node that is away stops all: [decision 29](decisions/0029-redis-cluster.md) |
"""


def reference() -> str:
    """The whole page."""
    enforcer, meter = known.of_process("enforcer"), known.of_process("meter")
    # One that both have under one name, and each with a meaning of its own, is in both tables.
    theirs = {replace(one, process="enforcer") for one in meter}
    names = {one.name for one in enforcer if one in theirs}
    return "\n".join(
        [
            _HEAD,
            "## Enforcer and meter\n",
            *_table(one for one in enforcer if one.name in names),
            "## Enforcer\n",
            *_table(one for one in enforcer if one.name not in names),
            "## Meter\n",
            *_table(one for one in meter if one.name not in names and not one.kafka),
            "## Kafka\n",
            "Read by the meter; by an enforcer where `METERGATE_JOURNAL_KAFKA` is set; by `metergate kafka`.\n",
            *_table(one for one in meter if one.kafka),
            _REDIS,
            "## Commands, clients, tests\n",
            "| variable | meaning |",
            "|---|---|",
            *(f"| `{name}` | {_cell(meaning)} |" for name, meaning in known.OTHERS.items()),
            "",
        ]
    )


def _table(settings: Iterable[known.Setting]) -> list[str]:
    return [
        "| setting | value | default | meaning |",
        "|---|---|---|---|",
        *(
            f"| `{one.name}` | {_cell(_value(one))} | {_default(one)} | {_cell(one.meaning)} |"
            for one in settings
        ),
        "",
    ]


def _value(setting: known.Setting) -> str:
    return f"{setting.form}: {setting.allowed}" if setting.allowed else setting.form


def _default(setting: known.Setting) -> str:
    if setting.default is None:
        return "**required**"
    return f"`{setting.default}`" if setting.default else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
