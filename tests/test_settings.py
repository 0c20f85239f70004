"""What an operator sets by environment variables."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from prefect_federated import memory
from prefect_federated.memory import SETTING
from prefect_federated.settings import Settings
from prefect_federated.wire import Limits


def _backing(array: np.ndarray) -> type:
    """Returns the type of what an array's memory belongs to."""
    base: object = array
    while getattr(base, "base", None) is not None:
        base = base.base  # type: ignore[attr-defined]
    return type(base)


def test_nothing_needs_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KIT", "DATA", "STATE", "ENDPOINT_HOST", "MAX_MESSAGE_BYTES", "TENSORBOARD"):
        monkeypatch.delenv(f"PREFECT_FEDERATED_{name}", raising=False)
    settings = Settings()
    assert (settings.kit, settings.endpoint_host) == (None, "127.0.0.1")
    assert settings.limits == Limits()
    assert settings.tensorboard is None


def test_the_environment_sets_the_kit_and_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_FEDERATED_KIT", "/etc/kit")
    monkeypatch.setenv("PREFECT_FEDERATED_MAX_MESSAGE_BYTES", "1000")
    assert Settings().kit == Path("/etc/kit")
    assert Settings().limits.message_bytes == 1000


def test_the_folder_for_tensors_is_a_setting_that_memory_obeys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path))
    assert Settings().tensors_on_disk == tmp_path
    assert _backing(memory.zeros((8 << 20,), np.float64)) is mmap.mmap
    monkeypatch.delenv(SETTING)
    assert Settings().tensors_on_disk is None
    assert _backing(memory.zeros((8 << 20,), np.float64)) is not mmap.mmap


def test_a_limit_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_FEDERATED_MAX_MESSAGE_BYTES", "0")
    with pytest.raises(ValidationError, match="max_message_bytes"):
        Settings()
