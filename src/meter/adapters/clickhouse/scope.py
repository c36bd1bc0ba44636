"""Which rows a report reads and how it groups them. Users' words become bound parameters only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter.ports.usage import Key, Scope

__all__ = ["beginning", "chosen", "key_of", "split"]


def beginning(column: str, starts: Sequence[int] | None, parameters: dict[str, Any]) -> str:
    """The start of the report's window that `column` lies in; of the first one {start} is bound already."""
    if starts is None:
        return f"toUInt32({column})"
    if len(starts) == 1:
        return "{start:UInt32}"
    parameters["starts"] = list(starts)
    return f"toUInt32(roundDown(toUInt32({column}), {{starts:Array(UInt32)}}))"


def split(scope: Scope, parameters: dict[str, Any]) -> str:
    """The values of the dimensions to group by."""
    parameters |= {f"by{at}": name for at, name in enumerate(scope.group_by)}
    values = ", ".join(
        f"arrayFirst(p -> p.1 = {{by{at}:String}}, dimensions).2"
        for at in range(len(scope.group_by))
    )
    return f"CAST([{values}], 'Array(String)')"


def key_of(name: str, key: Key, parameters: dict[str, Any]) -> str:
    """A key as a tuple to compare (begin, customer, meter, values) with."""
    parameters |= {
        f"{name}_start": key.start,
        f"{name}_customer": key.customer,
        f"{name}_meter": key.meter,
        f"{name}_values": list(key.values),
    }
    return (
        f"({{{name}_start:UInt32}}, {{{name}_customer:String}}, {{{name}_meter:String}},"
        f" CAST({{{name}_values:Array(String)}}, 'Array(String)'))"
    )


def chosen(scope: Scope, table: str) -> tuple[str, dict[str, Any]]:
    """The condition on `table`, and its parameters. The tenant is always part of it."""
    conditions = ["tenant = {tenant:String}"]
    parameters: dict[str, Any] = {"tenant": scope.tenant}
    if scope.meter:
        conditions.append(f"{table}.meter = {{meter:String}}")
        parameters["meter"] = scope.meter
    if scope.customers:
        conditions.append("customer IN {customers:Array(String)}")
        parameters["customers"] = list(scope.customers)
    for at, (name, values) in enumerate(scope.filters):
        conditions.append(
            f"arrayExists(p -> p.1 = {{filter{at}:String}} AND has({{allowed{at}:Array(String)}}, p.2),"
            " dimensions)"
        )
        parameters |= {f"filter{at}": name, f"allowed{at}": list(values)}
    return " AND ".join(conditions), parameters
