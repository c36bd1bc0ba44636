"""What counters are made of when they are made again."""

from __future__ import annotations

from enforcer.core.model import Customer, Node
from enforcer.core.rebuild import hold_of
from meter.core.records import Body, Effect, Effects, RecordType, encode_body

UNIT, COMPANY = Node(11, "acme-eu"), Node(12, "acme")
BODY = Body("demo", "acme", "acme-eu", "calls", "calls", id="r1")
HELD = Effects(
    RecordType.HOLD,
    1_700_000_000_000,
    granted=5,
    quantity=5,
    extra=1_700_000_060_000,
    entries=(Effect(102, 0, 0, 5),),
)


def test_a_hold_is_where_its_limit_was_counted_though_no_terms_have_that_any_more() -> None:
    """Else its end would be taken off nobody, and the counter would keep what was held."""
    customer = Customer("demo", 1, "acme", 0, 2, (UNIT, COMPANY))
    for ownerless, key in (({102: COMPANY}, "12:7"), ({102: UNIT}, "11:7"), ({}, "11:7")):
        made = hold_of(customer, 7, BODY, encode_body(BODY), HELD, ownerless)
        assert [(hold.key, hold.id, hold.amount) for chain in made.chains for hold in chain] == [
            (key, 102, 5)
        ]
