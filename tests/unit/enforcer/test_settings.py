"""Settings that cannot be, or do not go together, stop the start, each in a line that names them."""

from __future__ import annotations

import pytest

from enforcer.errors import MisconfiguredError
from enforcer.settings import load


@pytest.fixture(autouse=True)
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERGATE_DATABASE_URL", "sqlite+aiosqlite:///x")
    monkeypatch.setenv("METERGATE_INTERNAL_TOKEN", "x" * 16)


def test_without_a_journal_features_fail_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load().fails_open
    monkeypatch.setenv("METERGATE_JOURNAL_DIR", "journal")
    assert load().fails_open


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"JOURNAL_DIR": "x", "JOURNAL_KAFKA": "1"}, "METERGATE_JOURNAL_KAFKA: set one of them"),
        ({"ENFORCER_NUMBER": "1"}, "METERGATE_ENFORCER_NUMBER: must be less than"),
        ({"MOST_ENFORCERS": "0"}, "METERGATE_MOST_ENFORCERS: "),
        ({"TLS_CERT_FILE": "a.pem"}, "METERGATE_TLS_KEY_FILE: set both or none"),
        ({"TLS_KEY_FILE": "a.key"}, "METERGATE_TLS_CERT_FILE and .*: set both or none"),
        ({"TLS_CLIENT_CA_FILE": "a.pem"}, "CLIENT_CA_FILE: needs METERGATE_TLS_CERT_FILE"),
        ({"METER_TLS_CLIENT_KEY_FILE": "a.key"}, "METER_TLS_CLIENT_KEY_FILE: set both or none"),
        ({"METRICS_NAMED": '["acme"]'}, "METERGATE_METRICS_NAMED: .*`tenant/account`"),
        ({"METRICS_ACCOUNTS": "1001"}, "METERGATE_METRICS_ACCOUNTS: "),
        ({"REDIS_URL": "redis+sentinel://a/main"}, "must have the form redis"),
        ({"REDIS_URL": "redis+cluster://a"}, r"must have the form redis\+cluster://"),
    ],
)
def test_what_cannot_be_is_told(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], told: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"METERGATE_{name}", value)
    with pytest.raises(MisconfiguredError, match=told):
        load()
