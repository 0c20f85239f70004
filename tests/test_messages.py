"""Messages, and updates on their way into one and out of it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from prefect_federated.errors import ProtocolError, UpdateRejected
from prefect_federated.messages import Message, Update
from prefect_federated.transport.updates import failure_of, message_of, printable, update_of


def test_the_size_of_a_message_is_that_of_its_tensors_and_blobs() -> None:
    message = Message(
        {"long": "x" * 999}, {"a": np.zeros((3, 4), "f4"), "b": np.zeros(())}, {"c": b"12"}
    )
    assert message.size_bytes == 48 + 8 + 2


def test_messages_and_updates_do_not_change() -> None:
    for frozen, name in ((Message({}), "header"), (Update(), "weight")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, 1)


def test_an_update_comes_out_of_its_message_as_it_went_in() -> None:
    sent = Update({"w": np.ones(3)}, 304, {"loss": 0.5}, {"trees": b"ubj"}, 61)
    message = message_of("1.2", sent)
    assert message.header["id"] == "1.2"
    got = update_of("site-1", message)
    assert got == dataclasses.replace(sent, site="site-1")


def test_buffers_are_named_in_the_header_and_only_where_there_are_some() -> None:
    tensors = {"w": np.ones(3), "mean": np.zeros(3), "count": np.zeros((), "i8")}
    sent = Update(tensors, buffers=("mean", "count"))
    message = message_of("1.1", sent)
    assert message.header["buffers"] == ["mean", "count"]
    assert update_of("site-1", message).buffers == ("mean", "count")
    assert "buffers" not in message_of("1.1", Update(tensors)).header
    assert update_of("site-1", message_of("1.1", Update(tensors))).buffers == ()


def test_a_buffer_that_a_filter_took_out_is_none_any_more() -> None:
    message = message_of("1.1", Update({"w": np.ones(3), "mean": np.zeros(3)}, buffers=("mean",)))
    excluded = Message(message.header, {"w": message.tensors["w"]})
    assert update_of("site-1", excluded).buffers == ()


@pytest.mark.parametrize("buffers", ["mean", {"mean": 1}, [1], [None], ["a\nb"], ["w"] * 100_001])
def test_buffers_that_are_no_names_of_tensors_are_refused(buffers: Any) -> None:
    message = Message({"id": "1.1", "buffers": buffers}, {"w": np.ones(3)})
    with pytest.raises(UpdateRejected, match="'site-1' sent buffers that are not a list"):
        update_of("site-1", message)


def test_a_site_cannot_claim_another_name() -> None:
    message = message_of("1.1", Update(site="site-2"))
    assert update_of("site-1", message).site == "site-1"


def test_scalars_of_a_framework_are_numbers_and_scalar_tensors_are_arrays() -> None:
    bias = np.float32(2.5)  # what arithmetic makes of an array without dimensions
    message = message_of("1.1", Update({"bias": bias}, np.int64(9), {"loss": np.float32(0.5)}))  # type: ignore[arg-type, dict-item]
    assert message.tensors["bias"].shape == ()
    assert (message.header["weight"], message.header["metrics"]) == (9.0, {"loss": 0.5})


@pytest.mark.parametrize(
    ("update", "says"),
    [
        (Update(weight=float("nan")), "the weight is nan; it must be a finite number"),
        (Update(weight=None), "the weight is a NoneType"),  # type: ignore[arg-type]
        (Update(metrics={"auc": float("inf")}), "the metric 'auc' is inf"),
        (Update(metrics={"auc": "good"}), "the metric 'auc' is a str"),  # type: ignore[dict-item]
        (Update(metrics_weight=float("nan")), "the metrics' weight is nan"),
        (Update({"w": [1, 2]}), "tensor 'w' is a list; give a NumPy array"),  # type: ignore[dict-item]
        (Update({"w": np.ones(1)}, buffers=("mean",)), "the buffer 'mean' is none of the update's"),
        (Update(blobs={"b": "text"}), "the blob 'b' is a str; give bytes"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_travel_is_refused_at_the_site(update: Update, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        message_of("1.1", update)


def test_a_weight_of_zero_is_refused_at_the_server() -> None:
    with pytest.raises(UpdateRejected, match=r"'site-1' sent the weight 0.0; it must be above 0"):
        update_of("site-1", message_of("1.1", Update(weight=0)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("bad\nsecret"), "ValueError: bad"),
        (ValueError("\n  bad"), "ValueError: bad"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 9000), "RuntimeError: " + "x" * 486),
    ],
)
def test_a_failure_is_the_type_and_the_first_line_of_the_error(
    error: Exception, reason: str
) -> None:
    assert failure_of("1.1", error).header == {"id": "1.1", "error": reason}


def test_printable_text_is_one_line() -> None:
    assert printable("a\x00b\x1b[2Jc\u2028d\ud800é") == "a b [2Jc d é"
