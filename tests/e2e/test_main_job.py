"""The main job on a real gateway: check, consume, record, roll up, report — through the command line and over gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from tests.fixtures.stack import sums, write_trace

if TYPE_CHECKING:
    from tests.fixtures.stack import Stack

LEASE_SECONDS = 10


def clean_audit(stack: Stack) -> dict[str, Any]:
    found = stack.json("audit")
    assert (found["gaps"], found["repeats"], found["drift"]) == ([], 0, [])
    assert found["rollup_difference"] == 0
    return found


def reported(stack: Stack, meter: str, *customers: str) -> int:
    """What the report says once the records so far are rolled up, which the audit waits for."""
    clean_audit(stack)
    options = [part for customer in customers for part in ("--customer", customer)]
    total: int = stack.json("usage", "--meter", meter, *options)["total"]
    return total


def catalog(name: str, entitlements: str) -> str:
    """A file with one account."""
    return f"version: 1\naccounts:\n  - key: {name}\n    entitlements:\n" + "".join(
        f"      - {line}\n" for line in entitlements.strip().splitlines()
    )


def test_a_check_a_denial_and_usage(stack: Stack) -> None:
    allowed = stack.json("check", "acme", "export.pdf", "--quantity", "3")
    assert (allowed["allowed"], allowed["granted"]) == (True, 3)
    denied = stack.json("check", "acme", "export.pdf", status=1)
    assert denied["reason"] == "REASON_QUOTA_EXCEEDED"
    assert denied["limits"][0]["denied"]
    assert denied["retry_after"]
    assert reported(stack, "export.pdf", "acme") == 3


def test_reports_follow_the_meter_and_tell_what_would_sell(stack: Stack) -> None:
    entitlements = """
{feature: users.active, model: payg, per: month}
{feature: devices.online, model: payg, per: month}
{feature: seats, model: concurrent, seats: 1, ttl: 10s}
"""
    stack.apply(catalog("measured", entitlements))
    for user in ("ann", "bob", "ann"):
        stack.json("check", "measured", "users.active", "--dimension", f"user={user}")
    for online in ("7", "3"):
        stack.json("check", "measured", "devices.online", "--quantity", online)
    stack.json("lease", "acquire", "measured", "seats")
    stack.json("lease", "acquire", "measured", "seats", status=1)
    rows = stack.json("usage", "--customer", "measured")["rows"]
    assert {row["meter"]: (row["value"], row["quantity"]) for row in rows if row["events"]} == {
        "users.active": (2, 3),
        "devices.online": (3, 10),
    }
    (most,) = stack.json(
        *("usage", "--meter", "devices.online", "--customer", "measured", "--aggregate", "max")
    )["rows"]
    assert most["value"] == 7
    (seat,) = stack.json("seats", "--customer", "measured", "--window", "day", "--by", "account")[
        "rows"
    ]
    assert (seat["feature"], seat["account"], seat["customer"]) == ("seats", "measured", "")
    assert (seat["peak"], seat["seat_milliseconds"] > 0) == (1, True)
    deadline = time.monotonic() + 20
    while True:
        # Denials are recorded when their second is over.
        found = stack.json("denials", "--customer", "measured")["rows"]
        if found:
            break
        assert time.monotonic() < deadline
    assert [
        (row["reason_name"], row["limit_key"], row["limit_customer"], row["events"])
        for row in found
    ] == [("REASON_NO_SEATS", "seats:concurrent", "measured", 1)]


def test_a_seat_is_free_again_when_its_killed_holder_has_expired(stack: Stack) -> None:
    stack.apply(catalog("seated", "{feature: seats, model: concurrent, seats: 1, ttl: 10s}"))
    metergate = Path(sys.executable).with_name("metergate")
    holder = subprocess.Popen(
        [str(metergate), "lease", "hold", "seated", "seats", "--data-dir", str(stack.folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert "lease" in holder.stdout.readline()
        refused = stack.json("lease", "acquire", "seated", "seats", status=1)
        assert refused["check"]["reason"] == "REASON_NO_SEATS"
        # The heartbeat keeps the seat beyond its time to live.
        assert stack.json("lease", "list", "seated", "seats")["leases"]
    finally:
        holder.kill()
        holder.wait(10)
        assert holder.stdout is not None
        holder.stdout.close()
    give_up = time.monotonic() + LEASE_SECONDS + 10
    while stack.run("lease", "acquire", "seated", "seats").returncode != 0:
        assert time.monotonic() < give_up, "the seat never became free"
    clean_audit(stack)


def test_a_replay_adds_up_to_the_token_and_a_second_one_changes_nothing(
    stack: Stack, trace: Path
) -> None:
    before = {meter: stack.json("usage", "--meter", meter)["total"] for meter in sums(trace)}
    told = stack.json("replay", str(trace), timeout=280)
    for meter, amount in sums(trace).items():
        assert told[meter] == {
            "requested": amount,
            "consumed": amount,
            "denied": 0,
            "replayed": 0,
        }
        assert reported(stack, meter) - before[meter] == amount
    again = stack.json("replay", str(trace), timeout=280)
    for meter, amount in sums(trace).items():
        assert again[meter]["replayed"] == again[meter]["consumed"] == amount
        assert reported(stack, meter) - before[meter] == amount


def test_a_hard_limit_in_the_middle_of_a_replay_is_never_passed(
    stack: Stack, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path / "bounded.csv", rows=2000, seed=6)
    total = sums(trace)
    limit = total["llm.input_tokens"] // 2
    stack.apply(
        catalog(
            "bounded",
            f"{{feature: llm.requests, model: payg, per: month}}\n"
            f"{{feature: llm.input_tokens, model: quota, limit: {limit}, per: total}}\n"
            f"{{feature: llm.output_tokens, model: payg, per: month}}",
        )
    )
    told = stack.json("replay", str(trace), "--customers", "bounded", timeout=280)
    for meter, amount in total.items():
        assert told[meter]["requested"] == amount
        assert told[meter]["consumed"] + told[meter]["denied"] == amount
        assert reported(stack, meter, "bounded") == told[meter]["consumed"]
    consumed = told["llm.input_tokens"]["consumed"]
    assert 0 < consumed <= limit
    assert told["llm.input_tokens"]["denied"] > 0
    (quota,) = stack.json("balance", "bounded", "llm.input_tokens")["limits"]
    assert quota["used"] == consumed


async def concurrently(stack: Stack, calls: list[pb.CheckRequest]) -> list[pb.CheckResponse]:
    """Each call by a client with a connection of its own."""

    async def one(request: pb.CheckRequest, place: int) -> pb.CheckResponse:
        options = [("grpc.use_local_subchannel_pool", 1), ("metergate.client", place)]
        async with grpc.aio.insecure_channel(stack.endpoint, options=options) as channel:
            response: pb.CheckResponse = await EnforcerServiceStub(channel).Check(
                request,
                metadata=(("authorization", f"Bearer {stack.api_key}"),),
                timeout=60,
                wait_for_ready=True,
            )
            return response

    return await asyncio.gather(*(one(request, place) for place, request in enumerate(calls)))


async def test_200_concurrent_clients_get_exactly_the_quota(stack: Stack) -> None:
    stack.apply(catalog("crowd", "{feature: messages, model: quota, limit: 1000, per: total}"))
    granted = 0
    for _ in range(8):
        calls = [pb.CheckRequest(customer="crowd", feature="messages") for _ in range(200)]
        granted += sum(one.granted for one in await concurrently(stack, calls))
    assert granted == 1000


async def test_never_more_live_leases_than_seats(stack: Stack) -> None:
    stack.apply(catalog("stadium", "{feature: seats, model: concurrent, seats: 10, ttl: 60s}"))
    metadata = (("authorization", f"Bearer {stack.api_key}"),)
    async with grpc.aio.insecure_channel(stack.endpoint) as channel:
        stub = EnforcerServiceStub(channel)
        most = 0

        async def fan() -> None:
            nonlocal most
            for _ in range(5):
                taken = await stub.AcquireLease(
                    pb.AcquireLeaseRequest(customer="stadium", feature="seats"), metadata=metadata
                )
                listed = await stub.ListLeases(
                    pb.ListLeasesRequest(customer="stadium", feature="seats"), metadata=metadata
                )
                most = max(most, len(listed.leases))
                if taken.check.allowed:
                    await stub.ReleaseLease(
                        pb.ReleaseLeaseRequest(token=taken.lease.token), metadata=metadata
                    )

        await asyncio.gather(*(fan() for _ in range(40)))
    assert 0 < most <= 10


def test_quota_then_credits_then_pay_as_you_go_is_never_denied(stack: Stack) -> None:
    stack.apply(
        catalog(
            "mixed",
            "{feature: translations, model: quota, limit: 1000, per: total}\n"
            "{feature: translations, model: credits, grants: [{key: bought, amount: 500}]}\n"
            "{feature: translations, model: payg, per: month}",
        )
    )
    for _ in range(20):
        stack.json("check", "mixed", "translations", "--quantity", "100")
    limits = stack.json("balance", "mixed", "translations")["limits"]
    assert {one["kind"]: one["used"] for one in limits} == {
        "LIMIT_KIND_QUOTA": 1000,
        "LIMIT_KIND_CREDITS": 500,
        "LIMIT_KIND_PAYG": 500,
    }
    clean_audit(stack)


def test_a_denial_by_the_second_constraint_leaves_the_first_untouched(stack: Stack) -> None:
    stack.apply(
        catalog(
            "twice",
            "{feature: messages, model: rate, limit: 100, per: 1h}\n"
            "{feature: messages, model: quota, limit: 5, per: total}",
        )
    )
    denied = stack.json("check", "twice", "messages", "--quantity", "6", status=1)
    assert denied["reason"] == "REASON_QUOTA_EXCEEDED"
    assert [one["remaining"] for one in denied["limits"]] == [100, 5]


def test_a_changed_limit_counts_from_the_next_check(stack: Stack) -> None:
    text = "{{feature: messages, model: quota, limit: {}, per: total}}"
    stack.apply(catalog("grown", text.format(1)))
    stack.json("check", "grown", "messages")
    stack.json("check", "grown", "messages", status=1)
    stack.apply(catalog("grown", text.format(2)))
    stack.json("check", "grown", "messages")
    stack.json("check", "grown", "messages", status=1)
    unchanged = stack.json("apply", str(stack.folder / "test-catalog.yaml"))
    assert unchanged["changes"] == []


@pytest.mark.parametrize(
    ("arguments", "reason", "status"),
    [
        (("check", "nobody", "api.calls"), "UNKNOWN_CUSTOMER", 2),
        (("check", "acme", "nothing"), "UNKNOWN_FEATURE", 2),
        (("check", "acme", "api.calls", "--quantity", "0"), "", 2),
        (("check", "acme", "api.calls", "--mode", "sometimes"), "", 2),
        (("check", "acme", "seats"), "MODE_NOT_SUPPORTED", 2),
    ],
)
def test_bad_input_is_a_named_error(
    stack: Stack, arguments: tuple[str, ...], reason: str, status: int
) -> None:
    done = stack.run(*arguments)
    assert done.returncode == status
    assert reason in done.stderr
    assert done.stderr.strip()


def test_one_key_with_other_parameters_is_refused(stack: Stack) -> None:
    key = ("--key", f"once-{time.time_ns()}")
    first = stack.json("check", "acme", "api.calls", "--quantity", "2", *key)
    again = stack.json("check", "acme", "api.calls", "--quantity", "2", *key)
    assert again["replayed"]
    assert again["record"] == first["record"]
    other = stack.run("check", "acme", "api.calls", "--quantity", "3", *key)
    assert other.returncode == 2
    assert "IDEMPOTENCY_MISMATCH" in other.stderr


def test_a_malformed_catalog_names_file_line_and_field(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("version: 1\naccounts:\n  - key: x\n    entitlments: []\n")
    done = stack.run("apply", str(file))
    assert done.returncode == 2
    assert "wrong.yaml:4" in done.stderr
    assert "did you mean entitlements?" in done.stderr
