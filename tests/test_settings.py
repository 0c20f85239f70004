"""What an operator sets by environment variables."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from prefect_federated.settings import Settings
from prefect_federated.wire import Limits


def test_nothing_needs_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KIT", "DATA", "STATE", "ENDPOINT_HOST", "MAX_MESSAGE_BYTES"):
        monkeypatch.delenv(f"PREFECT_FEDERATED_{name}", raising=False)
    settings = Settings()
    assert (settings.kit, settings.endpoint_host) == (None, "127.0.0.1")
    assert settings.limits == Limits()


def test_the_environment_sets_the_kit_and_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_FEDERATED_KIT", "/etc/kit")
    monkeypatch.setenv("PREFECT_FEDERATED_MAX_MESSAGE_BYTES", "1000")
    assert Settings().kit == Path("/etc/kit")
    assert Settings().limits.message_bytes == 1000


def test_a_limit_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_FEDERATED_MAX_MESSAGE_BYTES", "0")
    with pytest.raises(ValidationError, match="max_message_bytes"):
        Settings()
