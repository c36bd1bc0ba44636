"""Write the secrets of deploy/compose.yaml, at random: `python3 deploy/compose_secrets.py [FOLDER]`.

Into deploy/secrets/ by default. One that is there stays as it is: the stores know it. Needs nothing but Python.

The folder is its owner's alone. The files in it are not: an engine mounts them into containers as they are, where users
with other numbers have to read them.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from secrets import token_urlsafe

HERE = Path(__file__).resolve().parent


def wanted() -> dict[str, str]:
    """Return name → text of all secrets. Those of one store go together."""
    valkey, postgres, clickhouse = token_urlsafe(32), token_urlsafe(32), token_urlsafe(32)
    database = f"postgresql+asyncpg://metergate:{postgres}@postgres:5432/metergate"
    return {
        "metergate_internal_token": token_urlsafe(32),
        "metergate_redis_url": f"redis://:{valkey}@valkey:6379/0",
        "valkey_conf": f"requirepass {valkey}",
        "metergate_database_url": database,
        "metergate_meter_database_url": database,
        "postgres_password": postgres,
        "metergate_clickhouse_url": f"http://metergate:{clickhouse}@clickhouse:8123/default",
        "clickhouse_users": USERS.format(digest=hashlib.sha256(clickhouse.encode()).hexdigest()),
        "grafana_password": token_urlsafe(32),
    }


USERS = """\
<clickhouse>
  <users>
    <default remove="remove"/>
    <metergate>
      <password_sha256_hex>{digest}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </metergate>
  </users>
</clickhouse>"""


def main() -> int:
    """Write what is missing; complain when only a part is."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "secrets"
    folder.mkdir(mode=0o700, exist_ok=True)
    secrets = wanted()
    missing = [name for name in secrets if not (folder / name).exists()]
    if not missing:
        sys.stdout.write(f"{folder} has all secrets\n")
        return 0
    if len(missing) < len(secrets):
        sys.stderr.write(
            f"secrets: {folder} lacks {', '.join(missing)}; they go together with the others: bring them back, or "
            "remove the folder and the stores' volumes\n"
        )
        return 1
    for name, text in secrets.items():
        (folder / name).write_text(text + "\n")
        (folder / name).chmod(0o644)
    sys.stdout.write(f"wrote {len(secrets)} secrets into {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
