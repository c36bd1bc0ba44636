"""Every setting of the enforcer, read from the environment with the prefix METERGATE_."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from enforcer.errors import MisconfiguredError
from meter.core.addresses import check_url
from meter.core.cluster import clustered
from meter.core.redact import shown
from meter.core.sentinel import watched
from meter.environment import no_json, secrets_folder
from meter.tls import TlsFiles

__all__ = ["Settings", "load"]

MIN_TOKEN = 16


class Settings(BaseSettings):
    """What an enforcer process needs to know."""

    model_config = SettingsConfigDict(env_prefix="METERGATE_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50051"
    """Where products ask: `host:port`. Several enforcers of one machine may share it."""
    transport: Literal["auto", "envoy", "grpcio"] = "auto"
    """What carries the calls: Envoy with Python inside (fast), grpcio (anywhere), or `auto`: Envoy where it runs."""
    tls_cert_file: Path | None = None
    """PEM file of the certificate of both ports, with what leads to its authority. With `tls_key_file` they speak TLS alone;
    new files are taken from the next connection on. Without it they speak plain text."""
    tls_key_file: Path | None = None
    """PEM file of its private key, without a passphrase."""
    tls_client_ca_file: Path | None = None
    """PEM file of authorities: only clients with a certificate of theirs are served, except for /healthz and /readyz."""
    most_connections: int = Field(default=10_000, ge=1, le=1_000_000)
    """How many connections this process holds at each port; more are closed at once. (On grpcio: at the HTTP port.)"""
    most_streams: int = Field(default=1_000, ge=1, le=1_000_000)
    """How many calls at once one connection may have; clients keep back what is more."""
    http_listen: str = "127.0.0.1:8080"
    """`host:port` of /metrics, /healthz and /readyz; shared likewise. Empty = none."""
    ratelimit_file: Path | None = None
    """Which descriptors of an Envoy ask for what: a file as docs/envoy.md has it. Without it no Envoy may ask."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://`, `unix://`; `redis+sentinel://host:port,host:port/name` with a Sentinel's name for it;
    `redis+cluster://host:port,host:port` (`rediss+cluster://` over TLS) with some nodes of a cluster."""
    database_url: str
    """SQLAlchemy URL of the definitions: `sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`."""
    buckets: int = Field(default=8, ge=1, le=65_536)
    """How many buckets the deployment has. Fixed for its life; equal on every process."""
    meter_endpoint: str = "127.0.0.1:7411"
    """Where the meter answers: `host:port`, `grpcs://host:port` for TLS, or `unix:/path`."""
    meter_tls_ca_file: Path | None = None
    """PEM file of the authorities that the meter's certificate is checked with; without it those of the system."""
    meter_tls_client_cert_file: Path | None = None
    """PEM file of the certificate that is shown to the meter. New files are used from the next question on."""
    meter_tls_client_key_file: Path | None = None
    """PEM file of its private key, without a passphrase."""
    meter_database_url: str = ""
    """The meter's marks, if it reads the outboxes themselves: while it is away, they prove that a restarted Redis lacks
    nothing of what was rolled up. Empty, or with Kafka: such a restart waits for the meter."""
    internal_token: SecretStr
    """Shared by enforcer and meter, at least 16 characters."""
    replay_window: timedelta = Field(
        default=timedelta(hours=24), ge=timedelta(minutes=1), le=timedelta(days=7)
    )
    """How long an idempotency key gets its original answer, at least; up to twice as long."""
    most_calls: int = Field(default=10_000, ge=1, le=1_000_000)
    """How many calls may wait for their answers at once; more are answered RESOURCE_EXHAUSTED."""
    tenant_most_calls: int = Field(default=4_000, ge=0, le=1_000_000)
    """How many calls of one tenant may wait for their answers at once, a large batch counting as several; 0 = no bound of
    its own. More are answered RESOURCE_EXHAUSTED. A tenant that floods makes others wait behind so many: see docs/security.md."""
    tenant_calls_per_second: int = Field(default=0, ge=0, le=10_000_000)
    """How many calls of one tenant this process takes in a second, counted likewise; 0 = as many as come."""
    connection_age_seconds: float = Field(default=5.0, ge=1, le=600)
    """After so long a client of the grpcio transport is asked to connect anew, between its calls: so processes that share
    the port share the load, and one that ends is left by all in that time. A longer one saves clients handshakes, and what
    has it at the end is cut off after ten seconds."""
    store_patience_seconds: float = Field(default=1.0, gt=0, le=60)
    """How long a call waits for Redis to come back before it answers UNAVAILABLE."""
    store_reply_seconds: float = Field(default=2.0, gt=0, le=60)
    """After so long without a reply the connection to Redis is given up."""
    fail_open_wait_seconds: float = Field(default=0.25, gt=0, le=60)
    """After so long without an answer from Redis a check of a feature that fails open is decided without it."""
    journal_dir: Path | None = None
    """Where uses of features that fail open are journaled while Redis is away: a folder on a disk, which the enforcers of
    one machine share. Without it every feature fails closed."""
    journal_kafka: bool = False
    """Instead of a folder: the topic of records with `.journal` behind, at METERGATE_KAFKA_SERVERS."""
    enforcer_number: int = Field(default=0, ge=0)
    """With `journal_kafka`: this enforcer's number, from 0 and below `most_enforcers`; no two at once have the same."""
    journal_most_bytes: int = Field(default=1 << 30, ge=1 << 16)
    """How much the uncounted uses of one enforcer may fill; beyond it features fail closed."""
    most_enforcers: int = Field(default=1, ge=1, le=10_000)
    """How many enforcers the deployment may have: each may allow this part of a feature's emergency amount."""
    breaker_window_seconds: float = Field(default=1.0, gt=0, le=60)
    """Calls to Redis are held back when many of the last so many seconds failed …"""
    breaker_least_calls: int = Field(default=5, ge=1)
    """… and there were at least so many …"""
    breaker_failure_percent: int = Field(default=50, ge=1, le=100)
    """… of which at least so many in a hundred failed."""
    audit_interval_seconds: float = Field(default=60.0, ge=0, le=86_400)
    """Every so often one bucket's counters are held against its records; 0 = never. One enforcer of a deployment is
    enough. A comparison that takes long is repeated less often: it never takes more than a twentieth of the time."""
    metrics_accounts: int = Field(default=20, ge=0, le=1_000)
    """How many accounts get a count of their own in /metrics when they make much of all decisions, in the life of the
    process; all others are counted as `other`."""
    metrics_named: frozenset[str] = Field(default=frozenset(), max_length=100)
    """Accounts that have a count of their own in any case, as a JSON list of `tenant/account`."""
    cached_programs: int = Field(default=100_000, ge=100, le=10_000_000)
    """How many customers' terms for a feature stay compiled."""
    backfill_days: int = Field(default=400, ge=2, le=36_500)
    """How many days back `Backfill` reaches; older events go to the review."""
    seal_after_days: int = Field(default=0, ge=0, le=36_500)
    """Calendar months (UTC) are sealed so many days after their end: 0 never, else at least 2."""
    tracing: bool = False
    """Whether calls may be traced: those that a client traces, and some of the others. Needs the extra `otel`; where spans
    go is said by OpenTelemetry's variables OTEL_…."""
    trace_ratio: float = Field(default=0.0, ge=0, le=1)
    """Which part of the calls that come without a trace context is traced."""
    traces_per_second: int = Field(default=100, ge=1, le=100_000)
    """So many calls a second this process traces at most, whoever wants it."""
    log_level: str = "info"
    """debug, info, warning or error; `metergate log-level` changes it for a time."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """A line of JSON for each event, text for people, or `auto`: text where stderr is a terminal."""
    slow_call_seconds: float = Field(default=1.0, ge=0, le=3600)
    """From so long on a call is logged as slow; 0 = never."""

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """What `repr` and `str` show: no password."""
        return shown(super().__repr_args__())

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

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        if not value.startswith(("sqlite+aiosqlite:///", "postgresql+asyncpg://")):
            raise ValueError("must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://")
        return value

    @field_validator("meter_database_url")
    @classmethod
    def _marks(cls, value: str) -> str:
        return cls._database(value) if value else value

    @field_validator("internal_token")
    @classmethod
    def _token(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < MIN_TOKEN:
            raise ValueError(f"needs at least {MIN_TOKEN} characters")
        return value

    @field_validator("listen", "http_listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and (not host or not port.isdigit()):
            raise ValueError("must be host:port")
        return value

    @field_validator("metrics_named")
    @classmethod
    def _named(cls, value: frozenset[str]) -> frozenset[str]:
        if not all(re.fullmatch(r"[^/]+/[^/]+", one) for one in value):
            raise ValueError("must be a JSON list of `tenant/account`")
        return value

    @field_validator("seal_after_days")
    @classmethod
    def _seal(cls, value: int) -> int:
        if value == 1:
            raise ValueError(
                "must be 0 (never) or at least 2: reports may concern the last 24 hours"
            )
        return value

    @model_validator(mode="after")
    def _tls(self) -> Self:
        pair = self.tls_cert_file, self.tls_key_file
        if any(pair) and not all(pair):
            raise ValueError("METERGATE_TLS_CERT_FILE and METERGATE_TLS_KEY_FILE: set both or none")
        pair = self.meter_tls_client_cert_file, self.meter_tls_client_key_file
        if any(pair) and not all(pair):
            raise ValueError(
                "METERGATE_METER_TLS_CLIENT_CERT_FILE and METERGATE_METER_TLS_CLIENT_KEY_FILE: set both or none"
            )
        if self.tls_client_ca_file is not None and self.tls is None:
            raise ValueError("METERGATE_TLS_CLIENT_CA_FILE: needs METERGATE_TLS_CERT_FILE")
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """The files of both ports; None: plain text."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        return TlsFiles(self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file)

    @property
    def meter_tls(self) -> TlsFiles | None:
        """What the meter is asked with; None: plain text."""
        if not self.meter_endpoint.startswith("grpcs://"):
            return None
        return TlsFiles(
            self.meter_tls_client_cert_file,
            self.meter_tls_client_key_file,
            self.meter_tls_ca_file,
            (
                "METERGATE_METER_TLS_CLIENT_CERT_FILE",
                "METERGATE_METER_TLS_CLIENT_KEY_FILE",
                "METERGATE_METER_TLS_CA_FILE",
            ),
        )

    @model_validator(mode="after")
    def _journal(self) -> Self:
        if self.journal_kafka and self.journal_dir is not None:
            raise ValueError("METERGATE_JOURNAL_DIR and METERGATE_JOURNAL_KAFKA: set one of them")
        if self.enforcer_number >= self.most_enforcers:
            raise ValueError(
                "METERGATE_ENFORCER_NUMBER: must be less than METERGATE_MOST_ENFORCERS, "
                f"which is {self.most_enforcers}"
            )
        return self

    @property
    def fails_open(self) -> bool:
        """Whether there is a journal, without which every feature fails closed."""
        return self.journal_kafka or self.journal_dir is not None

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value


def load() -> Settings:
    """Read the environment.

    Raise `MisconfiguredError` whose one-line message names each wrong setting, without its value.
    """
    try:
        folder = secrets_folder()
    except ValueError as error:
        raise MisconfiguredError(str(error)) from None
    try:
        # What is required comes from the environment, or from a file.
        return Settings(_secrets_dir=folder)  # type: ignore[call-arg]
    except SettingsError as error:
        raise MisconfiguredError(f"wrong settings: {no_json(error)}") from None
    except ValidationError as error:
        faults = "; ".join(
            ": ".join(
                (*(f"METERGATE_{str(part).upper()}" for part in fault["loc"][:1]), fault["msg"])
            )
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise MisconfiguredError(f"wrong settings: {faults}") from None
