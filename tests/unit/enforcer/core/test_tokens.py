"""Tokens open what they were signed for, and nothing else."""

from __future__ import annotations

import pytest

from enforcer.core.tokens import Token, read_token, sign_token

SECRET = b"s" * 32
LEASE = Token("lease", "demo", 3, "a1b2", "acme-ünit", "seats")
SIGNED = sign_token(SECRET, LEASE)


def test_a_token_reads_as_it_was_signed() -> None:
    assert read_token(SECRET, SIGNED, "lease") == LEASE


def test_a_token_is_one_word_for_headers_and_shells() -> None:
    assert SIGNED.isascii()
    assert SIGNED.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    ("secret", "text", "kind"),
    [
        (b"t" * 32, SIGNED, "lease"),  # another deployment's
        (SECRET, SIGNED, "reservation"),  # for something else
        (SECRET, "", "lease"),
        (SECRET, "AAAA", "lease"),
        (SECRET, SIGNED[:-4], "lease"),
        (SECRET, SIGNED + "AAAA", "lease"),
        (SECRET, "é" * 40, "lease"),
        (SECRET, "A" * 5000, "lease"),
        (SECRET, "A", "lease"),
    ],
)
def test_anything_else_is_no_token(secret: bytes, text: str, kind: str) -> None:
    assert read_token(secret, text, kind) is None


def test_no_changed_character_is_accepted() -> None:
    """The very last one may carry unused bits."""
    for place in range(len(SIGNED) - 1):
        other = "A" if SIGNED[place] != "A" else "B"
        assert read_token(SECRET, SIGNED[:place] + other + SIGNED[place + 1 :], "lease") is None
