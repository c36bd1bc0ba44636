"""Addresses of a Redis that Sentinels watch."""

from __future__ import annotations

import pytest

from meter.core.sentinel import Watched, watched


def test_an_address_names_sentinels_primary_database_and_login() -> None:
    found = watched("redis+sentinel://me:p%40ss@a:26379,[::1]:26380/main/2")
    assert found == Watched((("a", 26379), ("::1", 26380)), "main", 2, "me", "p@ss")
    assert watched("redis+sentinel://a:1/main") == Watched((("a", 1),), "main", 0, "", "")


def test_other_addresses_are_none() -> None:
    assert watched("redis://a:6379/0") is None


@pytest.mark.parametrize("rest", ["", "a/main", "a:1", "a:1/", "a:0/main", "a:1,b/main", "a:1/m/x"])
def test_a_wrong_address_is_told_its_form(rest: str) -> None:
    with pytest.raises(ValueError, match="must have the form redis"):
        watched(f"redis+sentinel://{rest}")
