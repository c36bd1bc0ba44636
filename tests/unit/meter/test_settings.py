"""Settings: derived from the data folder, wrong ones named without their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meter.errors import MisconfiguredError
from meter.settings import KafkaSettings, Settings, _load, load

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "a token of sixteen or more"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing from the developer's own environment but a token."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"METERGATE_{name.upper()}", raising=False)
    monkeypatch.setenv("METERGATE_INTERNAL_TOKEN", TOKEN)
    monkeypatch.setenv("METERGATE_DATA_DIR", str(tmp_path))


def test_the_embedded_stores_lie_in_the_data_folder(tmp_path: Path) -> None:
    settings = load()
    assert settings.clickhouse_url == f"chdb:{tmp_path / 'clickhouse'}"
    assert settings.meter_database_url == f"sqlite+aiosqlite:///{tmp_path / 'meter.db'}"
    assert settings.buckets == 8


def test_the_token_is_in_no_text() -> None:
    assert TOKEN not in repr(load())
    assert TOKEN not in str(load())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUCKETS", "0"),
        ("BUCKETS", "many"),
        ("REDIS_URL", "localhost"),
        ("CLICKHOUSE_URL", "clickhouse://x"),
        ("METER_LISTEN", "7411"),
        ("METER_FLUSH_INTERVAL_MS", "0"),
        ("METER_FLUSH_RECORDS", "-1"),
        ("INTERNAL_TOKEN", "secret"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"METERGATE_{name}", value)
    with pytest.raises(MisconfiguredError) as caught:
        load()
    assert f"METERGATE_{name}" in caught.value.message
    assert "\n" not in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("value", ["relay,rollup", "rollup, relay", '["relay", "rollup"]'])
def test_roles_are_a_list_of_words_or_json(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("METERGATE_METER_ROLES", value)
    monkeypatch.setenv("METERGATE_KAFKA_SERVERS", "localhost:9092")
    assert load().meter_roles == {"relay", "rollup"}


def test_what_has_to_be_json_and_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class More(KafkaSettings):
        names: frozenset[str] = frozenset()

    monkeypatch.setenv("METERGATE_NAMES", "secret")
    with pytest.raises(
        MisconfiguredError, match=r"^wrong settings: METERGATE_NAMES: must be JSON$"
    ):
        _load(More)


def test_a_missing_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METERGATE_INTERNAL_TOKEN")
    with pytest.raises(MisconfiguredError, match="METERGATE_INTERNAL_TOKEN"):
        load()
