"""Addresses of clusters, and who has which bucket."""

from __future__ import annotations

from typing import Any

import pytest

from meter.core.cluster import (
    Clustered,
    clustered,
    is_elsewhere,
    nodes_of,
    owners,
    primaries_of,
    slot_of,
)

HERE, THERE = ("10.0.0.1", 6379), ("10.0.0.2", 6380)
SLOTS: list[Any] = [
    [0, 5460, [b"10.0.0.1", 6379, b"id", []], [b"10.0.0.3", 6379, b"replica", []]],
    [5461, 10922, [b"10.0.0.2", 6380, b"id", []]],
]


def test_an_address_names_some_nodes_and_how_to_log_in() -> None:
    found = clustered("redis+cluster://ann:p%40ss@10.0.0.1:6379,[::1]:7000")
    assert found == Clustered("redis", (HERE, ("::1", 7000)), "ann", "p@ss")
    assert found.url(("::1", 7000)) == "redis://ann:p%40ss@[::1]:7000"
    assert clustered("rediss+cluster://10.0.0.1:6379") == Clustered("rediss", (HERE,), "", "")
    assert clustered("redis://10.0.0.1:6379/0") is None


@pytest.mark.parametrize("rest", ["host", "host:0", "a:1,", "host:6379/1", "host:6379?db=1"])
def test_an_address_of_another_form_is_refused_with_the_form(rest: str) -> None:
    with pytest.raises(ValueError, match=r"redis\+cluster://\[user:password@\]host:port,host:port"):
        clustered(f"redis+cluster://{rest}")


@pytest.mark.parametrize(
    ("key", "slot"), [("123456789", 12739), ("{user1000}.following", 3443), ("foo{}{bar}", 8363)]
)
def test_slots_are_those_of_the_specification(key: str, slot: int) -> None:
    assert slot_of(key) == slot


def test_a_bucket_is_where_its_slot_is_and_nowhere_if_nobody_has_that() -> None:
    assert [slot_of(f"{{b{bucket}}}:m") for bucket in range(4)] == [6939, 2874, 15193, 11128]
    assert owners(SLOTS, "asked", range(4)) == {0: THERE, 1: HERE}
    assert primaries_of(SLOTS, "asked") == [HERE, THERE]
    assert nodes_of(SLOTS, "asked") == [HERE, ("10.0.0.3", 6379), THERE]


@pytest.mark.parametrize("unknown", [b"", None, b"?"])
def test_a_node_that_does_not_know_its_own_address_is_where_it_was_asked(unknown: Any) -> None:
    assert primaries_of([[0, 1, [unknown, 7000, b"id", []]]], "asked") == [("asked", 7000)]


@pytest.mark.parametrize(
    "error",
    [
        "MOVED 6939 127.0.0.1:6379",
        "ASK 6939 127.0.0.1:6379",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN Hash slot not served",
        # Valkey 9 and Redis 7, from scripts
        "ERR Attempted to access a non local key in a cluster node script: on @user_script:11.",
        "ERR Script attempted to access a non local key in a cluster node script: f, on f:1.",
        "ERR Script attempted to execute a command while the cluster is down",
    ],
)
def test_errors_that_say_elsewhere_or_later_are_known(error: str) -> None:
    assert is_elsewhere(error)
    assert not is_elsewhere("OOM command not allowed when used memory > 'maxmemory'.")
