"""Messages sorted a partition at once come out as one by one: records, freshness, dead letters, offsets."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from meter.adapters.kafka.client import KafkaOptions
from meter.adapters.kafka.log import KafkaLog
from meter.core.events import Fresh, decode, encode, encode_fresh
from meter.core.records import Body, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Entry, Position

if TYPE_CHECKING:
    from meter.adapters.kafka.dead_letters import DeadLetters

BUCKETS, PARTITIONS, HERE = 6, 2, 0
BODY = encode_body(Body("t", "a", "c", "f", "m"))


def record(bucket: int, place: Position, now: int) -> bytes:
    return encode(
        bucket,
        Entry(
            place.generation, place.sequence, BODY, encode_effects(Effects(RecordType.USAGE, now))
        ),
    )


places = st.builds(Position, st.integers(1, 2), st.integers(0, 5))
values = st.one_of(
    st.builds(record, st.sampled_from([0, 2, 4]), places, st.integers(0, 9)),
    st.builds(record, st.integers(0, 9), places, st.just(1)),
    st.builds(
        lambda bucket, place: encode(bucket, Entry(place[0], place[1], b"{torn", b"?")),
        st.just(2),
        places,
    ),
    st.dictionaries(st.integers(0, 8), st.integers(0, 99), max_size=3).map(
        lambda buckets: encode_fresh(datetime(2026, 11, 1, tzinfo=UTC), buckets)
    ),
    st.sampled_from([b"", None, b"poison", record(2, Position(1, 3), 4)[:-1], b'{"id":"1-1"}']),
)


class Kept:
    """Dead letters that stay here."""

    def __init__(self) -> None:
        self.letters: list[tuple[int, str]] = []

    async def put(self, message: ConsumerRecord[Any, Any], reason: str) -> None:
        self.letters.append((message.offset, reason))


def one_by_one(
    messages: list[tuple[int, bytes | None]], after: dict[int, Position]
) -> tuple[dict[int, list[Entry]], dict[int, int], list[int], dict[int, Position]]:
    """What is to be made of each message, in the order of their coming."""
    entries: dict[int, list[Entry]] = {}
    fresh: dict[int, int] = {}
    dead: list[int] = []
    last: dict[int, Position] = {}
    for offset, value in messages:
        try:
            event = decode(value or b"")
        except ValueError:
            dead.append(offset)
            continue
        if isinstance(event, Fresh):
            fresh.update({bucket: ms for bucket, ms in event.buckets.items() if bucket in after})
            continue
        bucket, entry = event
        place = entry.position
        if bucket >= BUCKETS or bucket % PARTITIONS != HERE:
            dead.append(offset)
            continue
        last[bucket] = max(place, last.get(bucket, place))
        if bucket in after:
            begin = after[bucket]
            if place > begin or place.generation < begin.generation:
                entries.setdefault(bucket, []).append(entry)
    return entries, fresh, dead, last


@given(
    st.lists(values, max_size=12),
    st.dictionaries(st.sampled_from([0, 2, 4]), places),
)
def test_a_partition_at_once_is_its_messages_one_by_one(
    payloads: list[bytes | None], after: dict[int, Position]
) -> None:
    part = TopicPartition("records", HERE)
    messages = list(enumerate(payloads, 100))
    dead = Kept()
    log = KafkaLog(KafkaOptions("", partitions=PARTITIONS), BUCKETS, cast("DeadLetters", dead))
    log._chunks = {part: deque()}
    entries: dict[int, list[Entry]] = {}
    fresh: dict[int, int] = {}
    sent = [
        ConsumerRecord("records", HERE, offset, 0, 0, None, value, None, 0, 0, ())
        for offset, value in messages
    ]
    asyncio.run(log._take(part, sent, after, entries, fresh))
    expected = one_by_one(messages, after)
    assert entries == expected[0]
    assert fresh == expected[1]
    assert [offset for offset, _ in dead.letters] == expected[2]
    assert all(reason for _, reason in dead.letters)
    if messages:
        (chunk,) = log._chunks[part]
        assert chunk.end == messages[-1][0] + 1
        assert chunk.last == expected[3]
