"""Every setting of the meter, read from the environment with the prefix METERGATE_."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from meter.core.addresses import check_server, check_url
from meter.core.cluster import clustered
from meter.core.redact import shown
from meter.core.sentinel import watched
from meter.environment import no_json, secrets_folder
from meter.errors import MisconfiguredError
from meter.tls import TlsFiles

__all__ = ["KafkaSettings", "Settings", "load", "load_kafka"]

MIN_TOKEN = 16


class KafkaSettings(BaseSettings):
    """Where Kafka is, as whom it is reached, and the topic of records."""

    model_config = SettingsConfigDict(env_prefix="METERGATE_", extra="ignore", frozen=True)

    kafka_servers: str = ""
    """`host:port,…` of Kafka's brokers; empty: the rollup reads the outboxes itself."""
    kafka_topic: str = "metergate.records"
    """The topic of records; that of dead letters is named like it, with `.dead` behind."""
    kafka_partitions: int = Field(default=8, ge=1, le=10_000)
    """Of the topic of records. Fixed for its life: a bucket is in partition `bucket mod partitions`."""
    kafka_group: str = "metergate-rollup"
    """The consumer group of the rollup processes."""
    kafka_instance: str = ""
    """A name that this rollup process keeps when it restarts, to get its partitions back at once."""
    kafka_protocol: str = "PLAINTEXT"
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
    kafka_ca_file: str = ""
    """PEM file of the authorities that Kafka's certificate is checked with; empty: the system's."""
    kafka_mechanism: str = "SCRAM-SHA-512"
    """PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."""
    kafka_username: str = ""
    """Of SASL."""
    kafka_password: SecretStr = SecretStr("")
    """Of SASL."""

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """What `repr` and `str` show: no password."""
        return shown(super().__repr_args__())

    @field_validator("kafka_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        for server in value.split(",") if value else ():
            check_server(server)
        return value

    @field_validator("kafka_protocol")
    @classmethod
    def _protocol(cls, value: str) -> str:
        if value not in {"PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"}:
            raise ValueError("must be PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
        return value

    @field_validator("kafka_mechanism")
    @classmethod
    def _mechanism(cls, value: str) -> str:
        if value not in {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}:
            raise ValueError("must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
        return value


class Settings(KafkaSettings):
    """What the meter process needs to know. An unset URL is derived from `data_dir`."""

    data_dir: Path = Path("data")
    """Folder of the embedded stores."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://`, `unix://`; `redis+sentinel://host:port,host:port/name` with a Sentinel's name for it;
    `redis+cluster://host:port,host:port` (`rediss+cluster://` over TLS) with some nodes of a cluster."""
    buckets: int = Field(default=8, ge=1, le=65_536)
    """How many buckets the deployment has. Fixed for its life; equal on every process."""
    meter_buckets: str = ""
    """Which buckets this process rolls up, such as `0-3,6`; empty: all. For several rollup processes without Kafka."""
    clickhouse_url: str = ""
    """`chdb:<folder>` for the engine in this process, or `http(s)://user:password@host:port/database`. Empty: `chdb:` and
    the folder `clickhouse` of `data_dir`."""
    clickhouse_cluster: str = ""
    """What the server calls the cluster that it is in (`system.clusters`), of one shard with several replicas: tables are
    made on all of them and replicate. Fixed for the tables' life. Empty: one server."""
    meter_database_url: str = ""
    """SQLAlchemy URL of marks and manifests: `sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`. Empty: the file
    `meter.db` of `data_dir`."""
    meter_listen: str = "127.0.0.1:7411"
    """Where the internal services listen: `host:port` or `unix:/path`."""
    meter_tls_cert_file: Path | None = None
    """PEM file of the certificate of that port, with what leads to its authority. With `meter_tls_key_file` it speaks TLS
    alone; new files are taken from the next connection on. Without it: plain text, for a socket file or a private network."""
    meter_tls_key_file: Path | None = None
    """PEM file of its private key, without a passphrase."""
    meter_tls_client_ca_file: Path | None = None
    """PEM file of authorities: only clients with a certificate of theirs are served."""
    internal_token: SecretStr
    """Shared by enforcer and meter, at least 16 characters."""
    meter_roles: Annotated[frozenset[str], NoDecode] = frozenset({"rollup"})
    """What this process does: `rollup` (and reports), `relay` (outboxes to Kafka), or both: `rollup,relay`, or the same as
    a JSON list."""
    meter_flush_interval_ms: int = Field(default=200, ge=1, le=60_000)
    """The rollup gathers records for this long before it writes them."""
    meter_flush_records: int = Field(default=100_000, ge=1, le=1_000_000)
    """A slice has about this many records at most."""
    meter_raw_days: int = Field(default=90, ge=1, le=36_500)
    """Raw records are kept for so many whole days after the day of storing, then dropped. Reports stay."""
    meter_look_ahead: int = Field(default=1_000, ge=1, le=100_000)
    """How many records a bucket keeps beyond a gap before it is held."""
    meter_compare_wait_seconds: float = Field(default=30.0, gt=0, le=600)
    """How long a comparison waits for the rollup before it answers UNAVAILABLE."""
    meter_metrics_listen: str = ""
    """`host:port` of /metrics, /healthz and /readyz; empty = none."""
    tracing: bool = False
    """Whether records of traced calls are traced on; where spans go is said by OpenTelemetry's variables OTEL_…."""
    log_level: str = "info"
    """debug, info, warning or error; `metergate log-level` changes it for a time."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """A line of JSON for each event, text for people, or `auto`: text where stderr is a terminal."""

    @field_validator("meter_buckets")
    @classmethod
    def _share(cls, value: str) -> str:
        if not re.fullmatch(r"(\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*)?", value):
            raise ValueError("must be numbers and ranges such as 0-3,6")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        known = watched(value) or clustered(value)
        if not known and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(
                "must begin with redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// "
                "or rediss+cluster://"
            )
        if value.startswith(("redis://", "rediss://")):
            check_url(value)
        return value

    @field_validator("clickhouse_url")
    @classmethod
    def _clickhouse(cls, value: str) -> str:
        if value and not value.startswith(("chdb:", "http://", "https://")):
            raise ValueError("must be chdb:FOLDER or http(s)://host:port/database")
        if value.startswith("http"):
            check_url(value)
        return value

    @field_validator("meter_database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        if value and not value.startswith(("sqlite+aiosqlite:///", "postgresql+asyncpg://")):
            raise ValueError("must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://")
        return value

    @field_validator("clickhouse_cluster")
    @classmethod
    def _cluster(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.{}-]*", value):
            raise ValueError(
                "must be a cluster's name, of letters, digits, dots, - and _, or {macro}"
            )
        return value

    @field_validator("meter_roles", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return frozenset(part.strip() for part in value.split(","))
        try:
            return frozenset(json.loads(value))
        except (TypeError, ValueError):
            return frozenset()

    @field_validator("meter_roles")
    @classmethod
    def _roles(cls, value: frozenset[str]) -> frozenset[str]:
        if not value or not value <= {"rollup", "relay"}:
            raise ValueError("must be rollup, relay, or both with a comma between")
        return value

    @field_validator("internal_token")
    @classmethod
    def _token(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < MIN_TOKEN:
            raise ValueError(f"needs at least {MIN_TOKEN} characters")
        return value

    @field_validator("meter_listen", "meter_metrics_listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        if not value or value.startswith("unix:"):
            return value
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError("must be host:port or unix:/path")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value

    @model_validator(mode="after")
    def _relays(self) -> Self:
        if "relay" in self.meter_roles and not self.kafka_servers:
            raise ValueError("the role relay needs METERGATE_KAFKA_SERVERS")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        pair = self.meter_tls_cert_file, self.meter_tls_key_file
        if any(pair) and not all(pair):
            raise ValueError(
                "METERGATE_METER_TLS_CERT_FILE and METERGATE_METER_TLS_KEY_FILE: set both or none"
            )
        if self.meter_tls_client_ca_file is not None and not any(pair):
            raise ValueError(
                "METERGATE_METER_TLS_CLIENT_CA_FILE: needs METERGATE_METER_TLS_CERT_FILE"
            )
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """The files of the internal services' port; None: plain text."""
        if self.meter_tls_cert_file is None:
            return None
        return TlsFiles(
            self.meter_tls_cert_file,
            self.meter_tls_key_file,
            self.meter_tls_client_ca_file,
            (
                "METERGATE_METER_TLS_CERT_FILE",
                "METERGATE_METER_TLS_KEY_FILE",
                "METERGATE_METER_TLS_CLIENT_CA_FILE",
            ),
        )

    @property
    def share(self) -> frozenset[int]:
        """The buckets that this process rolls up."""
        if not self.meter_buckets:
            return frozenset(range(self.buckets))
        share: set[int] = set()
        for part in self.meter_buckets.split(","):
            first, _, last = part.partition("-")
            share.update(range(int(first), int(last or first) + 1))
        return frozenset(share)

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        if not self.share or max(self.share) >= self.buckets:
            raise ValueError(
                f"METERGATE_METER_BUCKETS: must name buckets from 0 to {self.buckets - 1}"
            )
        if self.meter_buckets and self.kafka_servers:
            raise ValueError("METERGATE_METER_BUCKETS: has no meaning with Kafka, which deals them")
        if self.meter_buckets and not self.clickhouse_url.startswith("http"):
            raise ValueError("METERGATE_METER_BUCKETS: needs a METERGATE_CLICKHOUSE_URL over HTTP")
        return self

    @model_validator(mode="after")
    def _check_cluster(self) -> Self:
        if self.clickhouse_cluster and not self.clickhouse_url.startswith("http"):
            raise ValueError(
                "METERGATE_CLICKHOUSE_CLUSTER: needs a METERGATE_CLICKHOUSE_URL over HTTP"
            )
        return self

    @model_validator(mode="after")
    def _derive(self) -> Self:
        derived = {
            "clickhouse_url": f"chdb:{self.data_dir / 'clickhouse'}",
            "meter_database_url": f"sqlite+aiosqlite:///{(self.data_dir / 'meter.db').absolute()}",
        }
        for name, value in derived.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)  # frozen for everybody else
        return self


S = TypeVar("S", bound=KafkaSettings)


def load() -> Settings:
    """Read the environment.

    Raise `MisconfiguredError` whose one-line message names each wrong setting, without its value.
    """
    return _load(Settings)


def load_kafka() -> KafkaSettings:
    """Read of the environment what concerns Kafka. Errors as in `load`."""
    return _load(KafkaSettings)


def _load(kind: type[S]) -> S:
    try:
        folder = secrets_folder()
    except ValueError as error:
        raise MisconfiguredError(str(error)) from None
    try:
        return kind(_secrets_dir=folder)  # type: ignore[call-arg]  # of BaseSettings
    except SettingsError as error:
        raise MisconfiguredError(f"wrong settings: {no_json(error)}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"METERGATE_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise MisconfiguredError(f"wrong settings: {faults}") from None
