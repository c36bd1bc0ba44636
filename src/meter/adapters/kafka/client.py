"""How Kafka is reached, and what the topics of a deployment must be like."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError, for_code

from meter.errors import LogUnavailableError, MisconfiguredError, TopicMissingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meter.settings import KafkaSettings

__all__ = [
    "ASK_KAFKA_SECONDS",
    "KafkaOptions",
    "ask_kafka",
    "kafka_failures",
    "prepare_topics",
    "quiet_driver",
]

ASK_KAFKA_SECONDS = 10.0
"""Between two questions to brokers that answer: each is a connection of its own."""
REQUEST_MS = 10_000
"""A broker that does not answer for so long is away."""
PATIENCE = 15.0
"""Seconds for anything that is asked of Kafka: longer than one request and a second try."""
JOURNAL_HOURS = 30 * 24
"""What nobody has counted for so long is lost."""
_REFUSALS = (
    errors.AuthenticationFailedError,
    errors.AuthenticationMethodNotSupported,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.ClusterAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.TopicAuthorizationFailedError,
    ssl.SSLError,
)
UNKNOWN_TOPIC = 3
TOPIC_EXISTS = 36


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """Where Kafka is, as whom, and the topics.

    `partitions` never changes in a topic's life: a bucket's records are in partition `bucket mod partitions`.
    `protocol` is PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; `ca_file` "" trusts the system's authorities.
    """

    servers: str
    topic: str = "metergate.records"
    partitions: int = 8
    group: str = "metergate-rollup"
    instance: str = ""
    protocol: str = "PLAINTEXT"
    ca_file: str = ""
    mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password: str = ""

    @classmethod
    def of(cls, settings: KafkaSettings) -> KafkaOptions:
        """As the settings say."""
        return cls(
            servers=settings.kafka_servers,
            topic=settings.kafka_topic,
            partitions=settings.kafka_partitions,
            group=settings.kafka_group,
            instance=settings.kafka_instance,
            protocol=settings.kafka_protocol,
            ca_file=settings.kafka_ca_file,
            mechanism=settings.kafka_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password.get_secret_value(),
        )

    @property
    def dead_letters(self) -> str:
        """The topic of messages that are no records."""
        return f"{self.topic}.dead"

    @property
    def journal(self) -> str:
        """The topic of what enforcers allowed while the counters were away."""
        return f"{self.topic}.journal"

    @property
    def access(self) -> dict[str, Any]:
        """Arguments of every client."""
        out: dict[str, Any] = {
            "bootstrap_servers": self.servers,
            "security_protocol": self.protocol,
            "request_timeout_ms": REQUEST_MS,
        }
        if self.protocol.endswith("SSL"):
            out["ssl_context"] = ssl.create_default_context(cafile=self.ca_file or None)
        if self.protocol.startswith("SASL"):
            out |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        return out


def quiet_driver() -> None:
    """Keep the driver from logging each of its ten tries a second: what fails in the end is told once."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@asynccontextmanager
async def kafka_failures(doing: str, seconds: float = PATIENCE) -> AsyncIterator[None]:
    """Turn the driver's errors into `LogUnavailableError`, and its endless waiting for a broker, too."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (KafkaError, OSError, TimeoutError) as error:
        what = str(error) or type(error).__name__
        refused = isinstance(error, _REFUSALS)
        raise LogUnavailableError(f"Kafka: {doing} failed: {what}", refused=refused) from error


async def ask_kafka(options: KafkaOptions) -> None:
    """Return when one of the brokers lets this process in. Raise `LogUnavailableError` saying what the last one said.

    The driver's clients try all brokers and tell of none: a wrong password looks like a broker that is away.
    """
    access = {name: value for name, value in options.access.items() if name != "bootstrap_servers"}
    failed: LogUnavailableError | None = None
    for server in options.servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            async with kafka_failures(f"reaching {server.strip()}"):
                (await create_conn(host, int(port), **access)).close()
        except LogUnavailableError as error:
            failed = error
        else:
            return
    assert failed is not None, "there is at least one"
    raise failed


@asynccontextmanager
async def _administering(options: KafkaOptions) -> AsyncIterator[AIOKafkaAdminClient]:
    async with kafka_failures("reaching the brokers"):
        admin = AIOKafkaAdminClient(**options.access)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()


async def prepare_topics(
    options: KafkaOptions, *, create: bool, replication: int = 1, retention_hours: int = 168
) -> dict[str, bool]:
    """Check the topics, and create those that are missing if asked to; return which were created.

    Records are deleted by age alone (never compacted), and are acknowledged when all replicas but one
    have them. Raise `TopicMissingError` when a topic is missing, `MisconfiguredError` when it has another number of
    partitions.
    """
    made: dict[str, bool] = {}
    async with _administering(options) as admin:
        wanted = {
            options.topic: options.partitions,
            options.journal: options.partitions,
            options.dead_letters: 1,
        }
        found = {topic["topic"]: topic for topic in await admin.describe_topics(list(wanted))}
        for name, partitions in wanted.items():
            topic = found.get(name)
            there = topic is not None and topic["error_code"] != UNKNOWN_TOPIC
            made[name] = not there
            if there:
                assert topic is not None
                if (has := len(topic["partitions"])) != partitions:
                    raise MisconfiguredError(
                        f"METERGATE_KAFKA_PARTITIONS is {options.partitions}, but topic {name} has "
                        f"{has}: a bucket's partition would change. Use another topic, or {has}"
                    )
                continue
            if not create:
                raise TopicMissingError(f"topic {name} is missing: run `metergate kafka init`")
            least = JOURNAL_HOURS if name == options.journal else 0
            await _create(admin, name, partitions, replication, max(retention_hours, least))
    return made


async def _create(
    admin: AIOKafkaAdminClient, name: str, partitions: int, replication: int, retention_hours: int
) -> None:
    reply = await admin.create_topics(
        [
            NewTopic(
                name,
                partitions,
                replication,
                topic_configs={
                    "cleanup.policy": "delete",
                    "retention.ms": str(retention_hours * 3_600_000),
                    "min.insync.replicas": str(max(1, replication - 1)),
                },
            )
        ]
    )
    for topic, code, *message in reply.topic_errors:
        if code not in {0, TOPIC_EXISTS}:
            why = next((str(part) for part in message if part), for_code(code).__name__)
            raise MisconfiguredError(f"topic {topic} cannot be created: {why}")
