"""Secrets are found by what they are known to be, and by their form; the rest of a text stays."""

from __future__ import annotations

import time

import pytest

from enforcer.core.tokens import Token, sign_token
from meter.core.redact import HIDDEN, Redactor, passwords_in, redacted, secret_name

SECRET = "hunter2hunter2"
KEY = f"mg_1a2b3c4d_{SECRET}-A_b"


@pytest.mark.parametrize(
    "text",
    [
        f"redis://:{SECRET}@host:6379/0",
        f"redis+sentinel://user:{SECRET}@a:1,b:2/name",
        f"postgresql+asyncpg://me:{SECRET}/@#?@db:5432/metergate is away",
        f"https://u:{SECRET}@h/x?y=1",
        f"authorization: Bearer {KEY}",
        f"the key is {KEY}.",
        f"Authorization: Basic {SECRET}",
        f"bearer {SECRET}",
        f"password={SECRET}",
        f"PASSWORD = {SECRET}, next=1",
        f"METERGATE_INTERNAL_TOKEN={SECRET}",
        f"METERGATE_KAFKA_PASSWORD: '{SECRET}'",
        f"sasl_plain_password='{SECRET} with blanks'",
        f'{{"password": "{SECRET} with \\"quotes\\" in it", "a": 1}}',
        f"{{'x-metergate-internal': '{SECRET}'}}",
        f"('authorization', 'Bearer {SECRET}')",
        f"('x-metergate-internal', '{SECRET}')",
        f"/?user=a&password={SECRET}&database=b",
        f"client_secret={SECRET}",
        f'\\"token\\": \\"{SECRET}\\"',
        f"api-key: {SECRET}",
        f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
        *(
            sign_token(b"s" * 32, Token(kind, "demo", 3, SECRET, "acme", "seats", 0))
            for kind in ("lease", "reservation", "allowance")
        ),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    shown = redacted(text)
    assert HIDDEN in shown
    assert SECRET not in shown
    assert text not in shown
    assert redacted(shown) == shown, "twice is as good as once"


@pytest.mark.parametrize(
    "text",
    [
        "redis://127.0.0.1:6379/0",
        "http://host:8080/path and user@example.com",
        "llm.input_tokens: 4096, tokens=12",
        "Connect call failed ('127.0.0.1', 6379)",
        "send the API key as metadata `authorization: Bearer <key>`",
        "no API key was sent: send it as `authorization: <key>`",
        "bucket 3 is held at 1 17 19",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "key 'order-1' was used with other parameters",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert redacted(text) == text


def test_what_is_known_is_hidden_wherever_it_stands() -> None:
    redact = Redactor(["correct horse", "correct horse battery", "abc", ""])
    assert redact("x correct horse batterycorrect horse y") == f"x {HIDDEN}{HIDDEN} y"
    assert redact("abc is too short to be known by itself") == (
        "abc is too short to be known by itself"
    )


def test_the_password_of_a_url_is_known_as_it_stands_and_as_it_is_meant() -> None:
    assert passwords_in("redis://u:p%40ss+w@h:1/0") == {"p%40ss+w", "p@ss+w", "p@ss w"}
    assert passwords_in("redis://h:1/0") == set()


@pytest.mark.parametrize("name", ["password", "kafka_password", "API-Key", "x-api-key", "token"])
def test_some_names_are_of_secrets(name: str) -> None:
    assert secret_name(name)


@pytest.mark.parametrize("name", ["key", "tokens", "bucket", "request_id", "idempotency_key"])
def test_others_are_not(name: str) -> None:
    assert not secret_name(name)


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "://" + ":" * 50_000, "eyJ" * 30_000, "password" * 12_000, '"token":"' * 9_000],
)
def test_no_text_takes_long(text: str) -> None:
    start = time.perf_counter()
    redacted(text)
    assert time.perf_counter() - start < 5
