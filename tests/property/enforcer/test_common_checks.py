"""The short ways of the common check give what the long ones would: asks by a stencil, replies as bytes."""

from __future__ import annotations

import random
import struct
from contextvars import copy_context
from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from enforcer.adapters.counters import codec
from enforcer.client import Mode as ClientMode
from enforcer.client.questions import Questions
from enforcer.core.commands import Ask, Decision, decided
from enforcer.core.compile import compile_program
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import MAX_QUANTITY, Feature
from enforcer.core.program import DENIED, SHADOW, Program, Reason
from enforcer.core.rules import Entry, Mode
from enforcer.gateway.asked import Asked, Name, misfit_of
from enforcer.gateway.replies import check_bytes
from enforcer.gateway.requests import MODES as MODES_BY_NUMBER
from enforcer.gateway.requests import dimensions_of
from enforcer.gateway.stencils import Skeletons, Stencil
from enforcer.gateway.wire import items_of, question_of, varint
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.records import decode_body
from meter.core.traced import current, written
from tests.property.accounts import FEATURES, SEATS, Maker

NOW = 1_700_000_000_000
SEEDS = st.integers(0, 2**32 - 1)
MODES = st.sampled_from([Mode.ENFORCE, Mode.CHECK_ONLY, Mode.BEST_EFFORT, Mode.RECORD_ONLY])
QUANTITIES = st.one_of(st.integers(1, 40), st.integers(1, MAX_QUANTITY))
WHOLE = st.integers(0, MAX_QUANTITY)


def some_program(dice: random.Random, feature: Feature | None = None) -> Program:
    customer = Maker(dice, NOW).account()
    return compile_program(customer, feature or dice.choice([*FEATURES, SEATS]), NOW, 0)[0]


@given(
    SEEDS,
    QUANTITIES,
    MODES,
    st.text(max_size=64),
    st.text(min_size=1, max_size=9),
    st.sampled_from(["", "1.0"]),
    st.dictionaries(st.text(min_size=1, max_size=16), st.text(max_size=40), max_size=4),
)
def test_a_stencil_asks_what_is_asked(
    seed: int,
    quantity: int,
    mode: Mode,
    key: str,
    customer: str,
    version: str,
    dimensions: dict[str, str],
) -> None:
    program = some_program(random.Random(seed))
    name = Name("demo", customer, "100 %d 🙂", version)
    stencil = Stencil(name, program, dimensions_of(dimensions))
    asked = Asked.of(name, quantity, mode, key, dimensions)
    expected = None if misfit_of(asked, program) else asked.ask(program)
    for _ in range(2):
        assert stencil.ask(quantity, mode, key.encode()) == expected
    if expected is not None:
        assert decode_body(expected.body).q == quantity


def test_a_traced_check_differs_in_the_last_field_of_its_record_alone() -> None:
    program = some_program(random.Random(1), FEATURES[0])
    asked = Asked.of(Name("demo", "c", "f"), 3, Mode.ENFORCE, "order-1", {"a": "b"})
    plain = asked.ask(program)
    traced = copy_context()
    traced.run(current.set, written(7, 8))
    ask = traced.run(asked.ask, program)
    assert ask.body == plain.body[:-1] + b',"tp":"%b"}' % written(7, 8).encode()
    assert replace(ask, body=plain.body) == plain, "a retry in another trace is the same check"


def test_a_stencil_keeps_a_bounded_number_of_quantities() -> None:
    program = some_program(random.Random(1), FEATURES[0])
    stencil = Stencil(Name("demo", "c", "f"), program)
    for quantity in range(1, 5_000):
        stencil.ask(quantity, Mode.ENFORCE, b"k")
    assert len(stencil._kinds) <= 256


COUNTED = some_program(random.Random(1), FEATURES[0])


def named() -> dict[tuple[str, str, str, str], Stencil]:
    """Stencils by their names."""
    return {
        name: Stencil(Name(*name), COUNTED)
        for name in (
            ("demo", "acme", "calls", ""),
            ("demo", "acme", "calls", "1.0"),
            ("demo", "ä" * 60, "calls", ""),
            ("other", "acme", "calls", ""),
        )
    }


def long_way(request: pb.CheckRequest) -> Ask:
    """What is asked of a message that is parsed."""
    quantity = request.quantity if request.HasField("quantity") else 1
    assert 0 < quantity <= MAX_QUANTITY
    name = Name("demo", request.customer, request.feature, request.product_version)
    mode, key = MODES_BY_NUMBER[request.mode], request.idempotency_key
    return Asked.of(name, quantity, mode, key, request.dimensions).ask(COUNTED)


def read(skeletons: Skeletons, message: bytes) -> None:
    """What is read by hand is what protobuf reads; what is not a common check is not read."""
    for _ in range(3):
        ask = skeletons.ask("demo", message)
        if ask is not None:
            assert ask == long_way(pb.CheckRequest.FromString(message))


REQUESTS = st.builds(
    pb.CheckRequest,
    customer=st.sampled_from(["acme", "ä" * 60, "nobody", "", "x" * 200]),
    feature=st.sampled_from(["calls", "", "others"]),
    quantity=st.none() | st.integers(-3, 300) | st.integers(-(2**63), 2**63 - 1),
    idempotency_key=st.text(max_size=70),
    mode=st.integers(0, 5),
    product_version=st.sampled_from(["", "", "", "1.0", "2.0"]),
    dimensions=st.sampled_from(
        [{}, {}, {"region": "eu"}, {"region": "eu", "model": "x" * 99}, {"long": "x" * 128}]
    ),
)


def serialised(request: pb.CheckRequest, dice: random.Random, behind: bytes) -> bytes:
    """Field by field, in this order or another; perhaps some twice, and what is no field of a check."""
    parts = []
    for field, value in request.ListFields():
        one = pb.CheckRequest()
        if field.name == "dimensions":
            one.dimensions.update(value)
        else:
            setattr(one, field.name, value)
        parts.append(one.SerializeToString())
    if dice.random() < 0.5:
        ends = parts[2:]
        dice.shuffle(ends)
        parts[2:] = ends
    if behind:
        parts.append(behind)
        dice.shuffle(parts)
    return b"".join(parts)


@given(
    st.lists(REQUESTS, max_size=4),
    st.randoms(use_true_random=False),
    st.booleans(),
    st.binary(max_size=6),
)
def test_a_check_that_is_read_by_hand_is_what_protobuf_reads(
    requests: list[pb.CheckRequest], dice: random.Random, spoilt: bool, behind: bytes
) -> None:
    skeletons = Skeletons(named().get)
    for request in requests:
        message = bytearray(serialised(request, dice, behind if spoilt else b""))
        if spoilt:
            for _ in range(dice.randint(0, 2)):
                if message:
                    message[dice.randrange(len(message))] = dice.randrange(256)
            if dice.random() < 0.3:
                message += request.SerializeToString()
            if dice.random() < 0.3:
                del message[dice.randrange(len(message) + 1) :]
        try:
            read(skeletons, bytes(message))
        except DecodeError:
            pytest.fail(f"read although it is no message: {bytes(message)!r}")


def test_the_common_check_is_read_by_hand_and_forgotten_with_its_stencil() -> None:
    stencils = named()
    skeletons = Skeletons(stencils.get)
    plain = pb.CheckRequest(customer="acme", feature="calls").SerializeToString()
    assert skeletons.ask("demo", plain) is None, "what comes once is not worth it"
    for quantity in (None, 1, 127, 128, 2**40, MAX_QUANTITY):
        for key in ("", "k", "ü" * 32):
            request = pb.CheckRequest(
                customer="acme", feature="calls", quantity=quantity, idempotency_key=key
            )
            assert skeletons.ask("demo", request.SerializeToString()) is not None
    stencil = stencils["demo", "acme", "calls", ""]
    assert stencil.skeletons == [plain]
    skeletons.forget(stencil)
    assert not stencil.skeletons
    assert not skeletons._known


@pytest.mark.parametrize("mode", ClientMode)
@pytest.mark.parametrize("version", ["", "1.0"])
@pytest.mark.parametrize("dimensions", [None, {"region": "eu", "model": "x" * 99}])
@pytest.mark.parametrize("key", [None, "order-1"])
def test_what_our_client_sends_is_read_by_hand(
    mode: ClientMode, version: str, dimensions: dict[str, str] | None, key: str | None
) -> None:
    stencils = named()
    skeletons, questions = Skeletons(stencils.get), Questions()
    for number in range(1, 300):
        message = questions.ask("acme", "calls", number, key, dimensions, mode, version).request
        ask = skeletons.ask("demo", message)
        assert (ask is None) == (number == 1)
        if ask is not None:
            assert ask == long_way(pb.CheckRequest.FromString(message))
    stencil = stencils["demo", "acme", "calls", version]
    assert len(stencil.skeletons) == 1
    assert len(skeletons._dimensioned) == bool(dimensions)
    skeletons.forget(stencil)
    assert not stencil.skeletons
    assert not skeletons._known
    assert not skeletons._dimensioned


PLAIN = b"\x0a\x04acme\x12\x05calls"


@pytest.mark.parametrize(
    "message",
    [
        PLAIN + b"\x18\x02\x22\x01k\x18\x07",  # two quantities: the last one counts
        PLAIN + b"\x22\x01k\x18\x07",
        PLAIN + b"\x18\x02\x22\x01k\x22\x01l",  # two keys
        PLAIN + b"\x22\x01k\x0a\x03abc",  # two customers
        PLAIN + b"\x22\x05k",  # cut off
        PLAIN + b"\x2a\x7f\x0a\x01a\x22\x01k",  # its key is in an entry that is cut off
        PLAIN + b"\x2a\x82\x01\x22\x01k" + b"\x22" * 128,  # a length of two bytes
        # Customer and feature are not where they seem to be.
        b"\x30\x04\x0a\x0bab\x12\x05calls\x18\x07\x12\x00\x12\x05calls",
        b"\x30\x04\x0a\x0cab\x12\x05calls\x22\x01k\x12\x01a\x12\x05calls",
    ],
)
def test_what_only_looks_like_a_common_check_is_not_taken_for_one(message: bytes) -> None:
    every: dict[tuple[str, str, str, str], Stencil] = {}

    def stencil(name: tuple[str, str, str, str]) -> Stencil:
        return every.setdefault(name, Stencil(Name(*name), COUNTED))

    skeletons = Skeletons(stencil)
    for _ in range(3):
        skeletons.ask("demo", PLAIN)
        try:
            read(skeletons, message)
        except DecodeError:
            pytest.fail("read although it is no message")


@pytest.mark.parametrize(
    "padding",
    [b"\x7a\x03abc", b"\x30\x01\x30\x01", b"\x30\x81\x00", b"\x2a\x04\x0a\x00\x12\x00" * 2],
)
def test_a_check_that_is_padded_is_not_kept(padding: bytes) -> None:
    skeletons = Skeletons(named().get)
    for behind in (padding, b"\x22\x01k" + padding, b"\x2a\x88\x08" + b"x" * 1032):
        for _ in range(3):
            assert skeletons.ask("demo", PLAIN + behind) is None
    assert not skeletons._known["demo"]


def test_dimensions_that_are_long_are_not_kept() -> None:
    skeletons = Skeletons(named().get)
    request = pb.CheckRequest(
        customer="acme",
        feature="calls",
        idempotency_key="k",
        dimensions={name: name * 250 for name in "abcd"},
    )
    for _ in range(3):
        assert skeletons.ask("demo", request.SerializeToString(deterministic=True)) is None


def asked_by(region: str) -> bytes:
    request = pb.CheckRequest(customer="acme", feature="calls", dimensions={"region": region})
    return request.SerializeToString()


def test_dimensions_that_never_come_again_leave_nothing_behind() -> None:
    stencils = named()
    skeletons = Skeletons(stencils.get)
    for number in range(25_000):
        assert skeletons.ask("demo", asked_by(f"{number}")) is None
    assert not skeletons._known["demo"]
    assert len(skeletons._seen) <= 10_000


def test_of_dimensions_that_come_again_a_bounded_number_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("enforcer.gateway.stencils.MOST_DIMENSIONED", 40)
    stencils = {
        ("demo", f"c{number}", "calls", ""): Stencil(Name("demo", f"c{number}", "calls"), COUNTED)
        for number in range(50)
    }
    skeletons = Skeletons(stencils.get)
    for number in range(50):
        for region in map(str, range(100 if number == 49 else 3)):
            request = pb.CheckRequest(
                customer=f"c{number}", feature="calls", dimensions={"region": region}
            )
            skeletons.ask("demo", request.SerializeToString())
            assert skeletons.ask("demo", request.SerializeToString()) is not None
            kept = sum(len(one.skeletons) for one in stencils.values())
            assert kept == len(skeletons._known["demo"]) == len(skeletons._dimensioned) <= 40
    assert stencils["demo", "c49", "calls", ""].skeletons


@pytest.mark.parametrize(
    "message", [b"", b"\x0a", b"\x0a\x01a\x12\x01b\x18" + b"\xff" * 100_000, b"\x22\x00"]
)
def test_what_is_no_check_is_not_read(message: bytes) -> None:
    assert Skeletons(named().get).ask("demo", message) is None


@given(st.lists(st.binary(max_size=200), max_size=4), st.binary(max_size=6))
def test_items_are_those_of_protobuf(items: list[bytes], behind: bytes) -> None:
    checks = [pb.CheckRequest(customer=item.hex()) for item in items]
    message = pb.CheckBatchRequest(items=checks).SerializeToString() + behind
    found = items_of(message)
    if found is not None and not behind:
        assert [pb.CheckRequest.FromString(one) for one in found] == checks
    assert (items_of(message) is not None) or behind


@given(st.integers(0, 2**64 - 1), st.text(max_size=90), st.binary(max_size=4))
def test_a_question_is_that_of_protobuf(number: int, customer: str, behind: bytes) -> None:
    check = pb.CheckRequest(customer=customer)
    message = pb.CheckStreamRequest(id=number, check=check).SerializeToString()
    found = question_of(message + behind)
    if found is not None:
        assert found == (number, check.SerializeToString() + behind)
        assert not behind or found[1] != check.SerializeToString()
    short = len(check.SerializeToString()) < 128
    assert (found is not None) == (short and bool(number) and not behind)


def expected_response(program: Program, decision: Decision) -> pb.CheckResponse:
    """Field by field, as the proto tells them; without tier, notify and the time to wait."""
    response = pb.CheckResponse(
        allowed=decision.granted > 0,
        granted=decision.granted,
        reason=decision.reason.value,  # type: ignore[arg-type]
        overage=decision.overage,
        shadow=decision.shadow,
        degraded=decision.degraded,
        grace=program.grace,
        replayed=decision.replayed,
        config_value=program.config,
    )
    for entry in decision.entries:
        label = program.labels[entry.code & ~0xF]
        response.limits.add(
            kind=entry.code >> 4 & 0xF,
            id=label.id,
            customer=label.customer,
            limit=entry.limit,
            used=entry.used,
            held=entry.held,
            remaining=entry.remaining,
            drawn=entry.drawn,
            denied=bool(entry.code & DENIED),
            shadow=bool(entry.code & SHADOW),
            unlimited=entry.limit == MAX_QUANTITY,
            resets_at=Timestamp(seconds=entry.reset // 1000, nanos=entry.reset % 1000 * 1_000_000)
            if entry.reset
            else None,
        )
    if decision.sequence >= 0:
        response.record.CopyFrom(
            pb.RecordId(
                bucket=decision.bucket,
                generation=decision.generation,
                sequence=decision.sequence,
            )
        )
    return response


def compared(program: Program, decision: Decision, quantity: int) -> None:
    found = pb.CheckResponse.FromString(check_bytes(program, decision, quantity))
    for field in ("tier", "notify", "retry_after"):
        found.ClearField(field)
    assert found == expected_response(program, decision)


@given(SEEDS)
def test_replies_as_bytes_are_the_messages_of_the_proto(seed: int) -> None:
    dice = random.Random(seed)
    program = some_program(dice, dice.choice(FEATURES))
    counters = MemoryCounters(lambda: NOW)
    counters.open(0, 1)
    counters.project(0, 1, 1)
    for _ in range(6):
        quantity = dice.choice([1, 2, 7, 30, 20_000, 2**40])
        mode = dice.choice([Mode.ENFORCE, Mode.CHECK_ONLY, Mode.BEST_EFFORT, Mode.RECORD_ONLY])
        (answer,) = counters.decide([Ask(program, quantity, mode, b"{}")])
        if isinstance(answer, Decision):
            compared(program, answer, quantity)


@given(
    SEEDS,
    st.sampled_from(Reason),
    st.tuples(WHOLE, WHOLE, WHOLE, st.integers(-1, MAX_QUANTITY)),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.lists(st.tuples(WHOLE, st.integers(-(2**53), 2**53), WHOLE, WHOLE, WHOLE, WHOLE)),
)
def test_replies_of_any_numbers_are_the_messages_of_the_proto(
    seed: int,
    reason: Reason,
    numbers: tuple[int, int, int, int],
    flags: tuple[bool, bool, bool],
    limits: list[tuple[int, ...]],
) -> None:
    dice = random.Random(seed)
    program = some_program(dice, dice.choice(FEATURES))
    granted, overage, generation, sequence = numbers
    codes = list(program.labels)
    values: list[int] = []
    for limit in limits if codes else ():
        values += (dice.choice(codes) | dice.choice([0, DENIED, SHADOW]), *limit)
    decision = decided(
        # Who is denied may be told a time to wait, which is made from what the program has.
        reason if granted else Reason.EXPIRED,
        granted,
        5,
        now=NOW,
        generation=generation,
        sequence=sequence,
        overage=overage,
        shadow=flags[0],
        values=tuple(values),
        replayed=flags[1],
        degraded=flags[2],
    )
    compared(program, decision, 1)
    # The store's numbers are doubles.
    compared(program, replace(decision, numbers=tuple(map(float, decision.numbers))), 1)


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_varint_is_that_of_protobuf(number: int) -> None:
    assert varint(number) == pb.CheckResponse(granted=number).SerializeToString()[1:] or not number


@given(
    st.lists(st.tuples(*[st.integers(-(2**53), 2**53)] * 7), max_size=20),
    st.text(max_size=120),
    st.tuples(WHOLE, WHOLE, WHOLE, WHOLE),
)
def test_a_reply_of_the_store_is_read_whole(
    entries: list[tuple[int, ...]], name: str, numbers: tuple[int, int, int, int]
) -> None:
    granted, overage, generation, sequence = numbers
    expires = NOW if name else 0
    head = (1, granted, overage, 1, NOW, generation, sequence, expires, len(entries))
    flat = [value for entry in entries for value in entry]
    reply = bytes(8) + struct.pack(f"<{9 + len(flat)}d", *head, *flat) + name.encode()
    for replayed, raw in ((False, reply), (True, [reply, 1])):
        found = codec.answer(3, raw)  # type: ignore[arg-type]
        assert found == decided(
            Reason.ALLOWED,
            granted,
            3,
            now=NOW,
            generation=generation,
            sequence=sequence,
            overage=overage,
            shadow=True,
            values=tuple(flat),
            id=name,
            expires=expires,
            replayed=replayed,
        )
        assert isinstance(found, Decision)
        assert found.entries == tuple(Entry._make(entry) for entry in entries)
        assert (found.granted, found.sequence, found.but()) == (granted, sequence, found)


def test_a_limit_that_is_long_is_written_whole() -> None:
    program = some_program(random.Random(3), FEATURES[0])
    code = 1 << 16 | 1 << 4
    long = replace(
        program, labels={code: replace(next(iter(program.labels.values())), id="i" * 9_000)}
    )
    decision = decided(
        Reason.ALLOWED,
        1,
        0,
        now=NOW,
        generation=1,
        sequence=1,
        values=(code, 1, 1, 0, 0, 1, NOW),
    )
    compared(long, decision, 1)
    with pytest.raises(StopIteration):
        next(iter(program.heads))
