"""Which model an update that is encoded as a change is decoded with."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.errors import UpdateRejected
from prefect_federated.executors import Site
from prefect_federated.filters import FilterSpec
from prefect_federated.messages import JsonValue, Message, Tensor
from prefect_federated.tasks import server_filters
from prefect_federated.tasks.server_filters import ServerFilters
from prefect_federated.transport.site_filters import SiteFilters

INT8 = FilterSpec(filter="int8", at="leaving_site")


def model(value: float) -> dict[str, Tensor]:
    return {"w": np.full(1000, value, np.float32)}


def asked(task: str, tensors: Mapping[str, Tensor] | None = None) -> Message:
    header: dict[str, JsonValue] = {"id": task, "kind": "train", "round": 1, "config": {}}
    return Message(header, tensors or {})


def encoded_update(folder: Path, sent: Message) -> Message:
    """Returns what a site sends that has added 1 to the model it was sent."""
    filters = SiteFilters([INT8.to_json()])
    received, visit = filters.entering(Site("a", folder, folder), sent)
    trained = {"w": np.asarray(received.model["w"]) + 1}
    return filters.leaving(Message({"id": sent.header["id"], "weight": 1.0}, trained), visit)


def test_a_late_update_is_decoded_with_the_model_of_its_own_call(tmp_path: Path) -> None:
    filters, first = ServerFilters([INT8]), asked("1.1", model(10))
    update = encoded_update(tmp_path, first)
    filters.note_sent("1.1", "train", first, late=0.5)
    for later in range(2, 5):
        filters.note_sent(f"1.{later}", "train", asked(f"1.{later}", model(50)), late=0.5)
    for call in (asked("1.4", model(50)), Message({})):
        taken = filters.entering("a", update, call)
        np.testing.assert_allclose(taken.tensors["w"], 11, rtol=1e-2)


def test_an_update_whose_model_is_gone_is_refused_and_not_decoded_with_another(
    tmp_path: Path,
) -> None:
    filters, first = ServerFilters([INT8]), asked("1.1", model(10))
    update = encoded_update(tmp_path, first)
    filters.note_sent("1.1", "train", first, late=0)
    with pytest.raises(UpdateRejected, match=r"change of is gone: task '1\.1'"):
        filters.entering("a", update, asked("1.2", model(50)))
    np.testing.assert_allclose(filters.entering("a", update, first).tensors["w"], 11, rtol=1e-2)


@pytest.mark.parametrize(
    ("specs", "late"),
    [([], 0.5), ([INT8], 0), ([FilterSpec(filter="clip", at="leaving_site", max_norm=1.0)], 0.5)],
)
def test_no_model_is_kept_that_no_update_can_need(specs: list[FilterSpec], late: float) -> None:
    filters = ServerFilters(specs)
    filters.note_sent("1.1", "train", asked("1.1", model(10)), late=late)
    assert not filters._references


def test_models_that_are_kept_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = ServerFilters([INT8])

    def kept() -> list[str]:
        for number in range(1, 21):
            sent = asked(f"1.{number}", model(number))
            filters.note_sent(f"1.{number}", "train", sent, late=0.5)
        return list(filters._references)

    assert kept() == [f"1.{number}" for number in range(13, 21)]
    monkeypatch.setattr(server_filters, "_REFERENCE_BYTES", 3 * 4000)
    assert kept() == ["1.18", "1.19", "1.20"]
    monkeypatch.setattr(server_filters, "_REFERENCE_BYTES", 1)
    assert kept() == ["1.20"]
