"""From the text of a mapping file to the domains that an Envoy may ask in; every issue is found, not only the first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from enforcer.catalog.read import Issue, Reader, load, refuse
from enforcer.core.descriptors import Domain, Rule, Text
from enforcer.core.rules import Mode

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["parse_domains", "read_domains"]

ANY = "*"
_PART = re.compile(r"\{([^{}]*)\}")
_MODES = {
    "enforce": Mode.ENFORCE,
    "check_only": Mode.CHECK_ONLY,
    "record_only": Mode.RECORD_ONLY,
}
MOST_DIMENSIONS = 16
LONGEST_NAME, LONGEST_VALUE = 64, 256
"""Bytes of a dimension, as checks may have them."""


def parse_domains(document: str, file_name: str) -> dict[tuple[str, str], Domain]:
    """Read a mapping file: domains by tenant and name. Raise `CatalogInvalidError` with all its issues."""
    issues: list[Issue] = []
    top = Reader(load(document, file_name), "", 1, issues, file_name)
    version = top.value("version")
    if isinstance(version, bool) or version != 1:
        top.issue("version", "must be 1, the only version of this format")
    if not top.has("domains"):
        top.issue("domains", "is required")
    domains: dict[tuple[str, str], Domain] = {}
    for at in top.children("domains"):
        domain = _domain(at)
        place = domain.tenant, domain.name
        if place in domains:
            at.issue("domain", f"{domain.name!r} of {domain.tenant!r} is there twice")
        domains[place] = domain
    top.finish()
    if issues:
        raise refuse(issues)
    return domains


def read_domains(path: Path) -> dict[tuple[str, str], Domain]:
    """The domains of a file. Raise `CatalogInvalidError`, also for one that cannot be read."""
    try:
        document = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no text in UTF-8"
        raise refuse([Issue(str(path), 1, "-", f"cannot be read: {why}")]) from error
    return parse_domains(document, str(path))


def _domain(at: Reader) -> Domain:
    name = at.text("domain")
    if not name and at.has("domain"):
        at.issue("domain", "is empty; write the domain of Envoy's filter")
    if not at.has("rules"):
        at.issue("rules", "is required")
    rules: list[Rule] = []
    for below in at.children("rules"):
        rule = _rule(below)
        if rule.match and any(rule.match == earlier.match for earlier in rules):
            below.issue("match", "is the same as an earlier rule's: this one is never used")
        rules.append(rule)
    domain = Domain(
        tenant=at.key("tenant"),
        name=name,
        rules=tuple(rules),
        refuse_unmapped=at.choice("unmapped", ["allow", "refuse"], "allow") == "refuse",
        headers=at.flag("headers", default=True),
    )
    at.finish()
    return domain


def _rule(at: Reader) -> Rule:
    match = _match(at)
    rule = Rule(
        match=match,
        customer=_key(at, "customer", match),
        feature=_key(at, "feature", match),
        quantity=_quantity(at, match),
        mode=_MODES[at.choice("mode", list(_MODES), "enforce")],
        key=_idempotency_key(at, match),
        dimensions=_dimensions(at, match),
        allow_unknown=at.choice("unknown", ["refuse", "allow"], "refuse") == "allow",
    )
    at.finish()
    return rule


def _match(at: Reader) -> dict[str, frozenset[str] | None]:
    """Entries and the values that they may have; None: any."""
    below = at.child("match")
    if below is None:
        at.issue("match", "is required: the entries of the descriptors that this rule is for")
        return {}
    match: dict[str, frozenset[str] | None] = {}
    for name in below.names():
        if not isinstance(name, str) or not name:
            below.value(name)
            below.issue(str(name) or "-", "names of entries are text (put it in quotes)")
            continue
        values = below.value(name)
        if isinstance(values, str) and values:
            match[str(name)] = None if values == ANY else frozenset({str(values)})
        elif (
            isinstance(values, list)
            and values
            and all(isinstance(value, str) and value for value in values)
        ):
            match[str(name)] = None if ANY in values else frozenset(map(str, values))
        else:
            below.issue(
                name, f'must be a value, a list of values, or "{ANY}" for any, all in quotes'
            )
            match[str(name)] = None
    if at.value("match") == {}:
        at.issue("match", "is empty: a descriptor has at least one entry")
    below.finish()
    return match


def _key(at: Reader, name: str, known: Collection[str]) -> Text:
    """A key of the catalog, or text with `{entry}` in it."""
    written = at.value(name)
    if isinstance(written, str) and ("{" in written or "}" in written):
        return _text(at, name, known)
    if written == "":
        at.issue(name, "is empty")
        return Text(("",))
    return Text((at.key(name),))


def _text(at: Reader, name: str, known: Collection[str]) -> Text:
    """Any text, perhaps with `{entry}` in it."""
    text = Text(tuple(_PART.split(at.text(name, ""))))
    _check(at, name, text, known)
    return text


def _idempotency_key(at: Reader, known: Collection[str]) -> Text | None:
    if not at.has("idempotency_key"):
        return None
    text = _text(at, "idempotency_key", known)
    if text.fixed:
        at.issue("idempotency_key", "needs an {entry}: else all requests are the same one")
    return text


def _check(at: Reader, name: str, text: Text, known: Collection[str]) -> None:
    """Only entries of the rule's `match` can be filled in: whatever else is there would be there at times."""
    if any("{" in part or "}" in part for part in text.parts[::2]):
        at.issue(name, "has a brace without its other half; write {entry}")
    for entry in text.names:
        if entry not in known:
            at.issue(name, f"{{{entry}}} is no entry of match; there are: {_listed(known)}")


def _listed(known: Collection[str]) -> str:
    return ", ".join(known) or "none"


def _quantity(at: Reader, known: Collection[str]) -> int | str:
    """Units of a hit: a number, or the entry that has it."""
    if not isinstance(at.value("quantity"), str):
        return at.integer("quantity", 1, least=1)
    text = Text(tuple(_PART.split(at.text("quantity"))))
    if len(text.names) != 1 or text.parts[0] or text.parts[2]:
        at.issue("quantity", "must be an integer from 1, or {entry} for the one that an entry has")
        return 1
    _check(at, "quantity", text, known)
    return text.names[0]


def _dimensions(at: Reader, known: Collection[str]) -> dict[str, Text]:
    below = at.child("dimensions")
    if below is None:
        return {}
    dimensions = {}
    for name in below.names():
        if not isinstance(name, str) or not 0 < len(name.encode()) <= LONGEST_NAME:
            below.value(name)
            below.issue(
                str(name) or "-", f"a dimension's name is text of 1 to {LONGEST_NAME} bytes"
            )
            continue
        text = dimensions[str(name)] = _text(below, name, known)
        if text.fixed and len(text.parts[0].encode()) > LONGEST_VALUE:
            below.issue(name, f"is too long: a dimension's value has at most {LONGEST_VALUE} bytes")
    if len(dimensions) > MOST_DIMENSIONS:
        at.issue("dimensions", f"has {len(dimensions)}, at most {MOST_DIMENSIONS} are possible")
    below.finish()
    return dimensions
