"""Every setting of the enforcer, read from the environment with the prefix METERGATE_."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from enforcer.errors import MisconfiguredError
from meter.core.sentinel import watched
from meter.environment import no_json, secrets_folder

__all__ = ["Settings", "load"]

MIN_TOKEN = 16


class Settings(BaseSettings):
    """What an enforcer process needs to know."""

    model_config = SettingsConfigDict(env_prefix="METERGATE_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50051"
    """Where products ask: `host:port`. Several enforcers of one machine may share it."""
    transport: Literal["auto", "envoy", "grpcio"] = "auto"
    """What carries the calls: Envoy with Python inside (fast), grpcio (anywhere), or `auto`: Envoy where it runs."""
    http_listen: str = "127.0.0.1:8080"
    """`host:port` of /metrics, /healthz and /readyz; shared likewise. Empty = none."""
    ratelimit_file: Path | None = None
    """Which descriptors of an Envoy ask for what: a file as docs/envoy.md has it. Without it no Envoy may ask."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://`, `unix://`, or `redis+sentinel://host:port,host:port/name` with a Sentinel's name for it."""
    database_url: str
    """SQLAlchemy URL of the definitions: `sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`."""
    buckets: int = Field(default=8, ge=1, le=65_536)
    """How many buckets the deployment has. Fixed for its life; equal on every process."""
    meter_endpoint: str = "127.0.0.1:7411"
    """Where the meter answers: `host:port` or `unix:/path`."""
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
    cached_programs: int = Field(default=100_000, ge=100, le=10_000_000)
    """How many customers' terms for a feature stay compiled."""
    backfill_days: int = Field(default=400, ge=2, le=36_500)
    """How many days back `Backfill` reaches; older events go to the review."""
    seal_after_days: int = Field(default=0, ge=0, le=36_500)
    """Calendar months (UTC) are sealed so many days after their end: 0 never, else at least 2."""
    log_level: str = "info"
    """What is logged, from this level on."""

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if not watched(value) and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss://, redis+sentinel:// or unix://")
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

    @field_validator("seal_after_days")
    @classmethod
    def _seal(cls, value: int) -> int:
        if value == 1:
            raise ValueError(
                "must be 0 (never) or at least 2: reports may concern the last 24 hours"
            )
        return value

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
