"""What a peer claims of its encodings: checked before memory is taken, for any header."""

import copy
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_federated.errors import ProtocolError
from prefect_federated.filters import Filters, Point, decode, decoded_specs
from prefect_federated.messages import JsonValue, Message, Tensors
from prefect_federated.wire import Limits, TensorSpec, specs_of
from tests.filters.parts import entering_server, leaving_site, normal

MODEL: Tensors = {"w": normal(20, 30), "v": normal(500)}
CHAINS: list[list[dict[str, object]]] = [
    [{"filter": "cast", "to": "float16"}],
    [{"filter": "cast", "to": "bfloat16"}],
    [{"filter": "int8", "block": 64}],
    [{"filter": "top_k", "count": 9}],
    [{"filter": "top_k", "count": 9}, {"filter": "cast", "to": "bfloat16"}],
    [{"filter": "top_k", "count": 99}, {"filter": "int8", "min_elements": 9, "block": 16}],
]


def encoded(chain: list[dict[str, object]], reference: Tensors | None = MODEL) -> Message:
    update = {
        name: tensor + np.float32(0.1) * normal(*tensor.shape) for name, tensor in MODEL.items()
    }
    filters = Filters.of([{"at": "leaving_site", **spec} for spec in chain])
    message = Message({"id": "t1"}, {**update, "steps": np.array(7)})
    return filters.run(Point.LEAVING_SITE, message, leaving_site(reference))


def changed(message: Message, change: Callable[[Any], object]) -> Message:
    """Returns a message whose last encoding was changed by a function."""
    header: dict[str, Any] = copy.deepcopy(dict(message.header))
    change(header["encodings"][-1])
    return Message(header, message.tensors)


def sparse(claims: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Returns the header of a message whose tensors are the largest elements only."""
    return {"encodings": [{"encoding": "top_k", "options": {}, "tensors": claims}]}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("reference", [MODEL, None])
def test_a_head_tells_the_specs_that_decoding_gives(
    chain: list[dict[str, object]], reference: Tensors | None
) -> None:
    message = encoded(chain, reference)
    got = decode(message, entering_server(reference))
    specs = decoded_specs(message.header, specs_of(message.tensors))
    assert specs == specs_of(got.tensors)
    assert list(specs) == list(got.tensors) == ["w", "v", "steps"]
    assert specs["w"] == TensorSpec("F32", (20, 30))
    assert "encodings" not in got.header
    assert got.header["id"] == "t1"
    for name, tensor in got.tensors.items():
        assert name == "steps" or message.tensors[name] is tensor or not tensor.flags.writeable


def test_a_message_without_encodings_is_itself() -> None:
    message = Message({"id": "t"}, {"w": normal(3)})
    assert decode(message, entering_server()) is message
    assert decoded_specs({}, specs_of(message.tensors)) == specs_of(message.tensors)


HOSTILE: list[tuple[int, Callable[[Any], object], str]] = [
    (2, lambda e: e.update(encoding="zip"), "'zip' is unknown; known are cast, int8, top_k"),
    (2, lambda e: e.pop("tensors"), "says nothing"),
    (2, lambda e: e.update(tensors=[]), "says nothing"),
    (2, lambda e: e.update(options=None), "says nothing"),
    (2, lambda e: e["options"].update(block=0), "blocks of 0 elements"),
    (2, lambda e: e["options"].update(block=True), "blocks of True"),
    (2, lambda e: e["options"].update(block=10**30), "blocks of 1000"),
    (2, lambda e: e["options"].pop("block"), "blocks of None"),
    (2, lambda e: e["options"].update(block=32), "'w' is U8 .640,.; to be decoded"),
    (2, lambda e: e["tensors"].update(u=["F32", [9], False]), "tensor 'u' is missing"),
    (2, lambda e: e["tensors"].update(w=["F32", [20, 31], True]), "'w' is U8"),
    (2, lambda e: e["tensors"].update(w=["I32", [20, 30], True]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F32", [20, -30], True]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F32", [20, 30.0], True]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F32", [20, True], True]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F32", [1] * 17, True]), "at most .* in 16 dimensions"),
    (2, lambda e: e["tensors"].update(w=["F32", [20, 30], 1]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F32", [20, 30]]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F32", [2**61, 2**61], True]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F32", [0, 2**61], True]), "claimed to be"),
    (2, lambda e: e["tensors"].update(w=["F64", [20, 30], True]), "the model has float32"),
    (2, lambda e: e["tensors"].update(w=["F32", [600], True]), "change of a model's F32"),
    (0, lambda e: e["options"].update(to="float8"), "cast to 'float8'"),
    (0, lambda e: e["options"].update(to=["F16"]), "cast to"),
    (0, lambda e: e["options"].update(to="bfloat16"), "'w' is F16 .*must be U16"),
    (0, lambda e: e["tensors"].update(steps=["F32", [], False]), "'steps' is I64"),
    (3, lambda e: e["tensors"].update(w=["F32", [2, 2], False]), "9 of 4 elements"),
    (3, lambda e: e["tensors"].update(w=["F32", [2**32], False]), "'w#at' is U32 .*must be U64"),
    (3, lambda e: e["tensors"].update({"w#at": ["F32", [9], False]}), "'w#at' is missing"),
]


@pytest.mark.parametrize(("chain", "change", "said"), HOSTILE)
def test_a_claim_that_does_not_hold_is_refused_with_the_sites_name(
    chain: int, change: Callable[[Any], object], said: str
) -> None:
    message = changed(encoded(CHAINS[chain]), change)
    with pytest.raises(ProtocolError, match=f"site 'clinic-a'.*{said}"):
        decode(message, entering_server(MODEL))


@pytest.mark.parametrize("encodings", [{}, "cast", 3, [3], [None], [[]], [{}] * 5])
def test_encodings_that_are_no_short_list_are_refused(encodings: JsonValue) -> None:
    message = Message({"encodings": encodings}, {"w": normal(3)})
    if encodings == {}:
        encodings = {"a": 1}
    with pytest.raises(ProtocolError, match="encoding"):
        decode(Message({"encodings": encodings}, message.tensors), entering_server())


def test_one_encoding_claimed_many_times_over_is_refused() -> None:
    message = encoded(CHAINS[2])
    entries = message.header["encodings"]
    assert isinstance(entries, list)
    again = Message({"encodings": entries * 2}, message.tensors)
    with pytest.raises(ProtocolError, match="'w' is F32"):
        decode(again, entering_server(MODEL))
    with pytest.raises(ProtocolError, match="at most 4"):
        decode(Message({"encodings": entries * 5}, message.tensors), entering_server(MODEL))


@pytest.mark.parametrize("missing", ["w", "w#at"])
def test_a_tensor_that_did_not_come_is_refused(missing: str) -> None:
    message = encoded(CHAINS[3])
    tensors = {name: tensor for name, tensor in message.tensors.items() if name != missing}
    with pytest.raises(ProtocolError, match=f"'{missing}' is missing"):
        decode(Message(message.header, tensors), entering_server(MODEL))


@pytest.mark.parametrize(
    "at", [[5, 5, 6], [6, 5, 7], [0, 1, 600], [0, 1, 2**32 - 1], [2**32 - 1, 0, 1]]
)
def test_indices_out_of_order_repeated_or_out_of_range_are_refused(at: list[int]) -> None:
    header = sparse({"w": ["F32", [600], False]})
    tensors = {"w": normal(3), "w#at": np.array(at, np.uint32)}
    with pytest.raises(ProtocolError, match="indices that are not ascending, or beyond"):
        decode(Message(header, tensors), entering_server())


def test_indices_are_checked_across_pieces() -> None:
    at = np.arange(200_000, dtype="u4")
    at[65_536] = 65_535
    header = sparse({"w": ["F32", [10**6], False]})
    with pytest.raises(ProtocolError, match="not ascending"):
        decode(Message(header, {"w": np.ones(200_000, "f4"), "w#at": at}), entering_server())


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_scales_that_are_no_scales_are_refused(scale: float) -> None:
    message = encoded(CHAINS[2])
    broken = message.tensors["w"].copy()
    broken[:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    with pytest.raises(ProtocolError, match="scales that are not finite"):
        decode(Message(message.header, {**message.tensors, "w": broken}), entering_server(MODEL))


def test_a_change_of_a_model_that_is_not_there_is_refused() -> None:
    message = encoded(CHAINS[2])
    for reference in (None, {}, {"w": MODEL["w"].astype("f8"), "v": MODEL["v"]}):
        with pytest.raises(ProtocolError, match="'w' is a change of a model's F32"):
            decode(message, entering_server(reference))


def test_a_tiny_message_that_would_be_huge_takes_no_memory() -> None:
    huge = 1 << 31
    names = [f"t{number}" for number in range(8)]
    claims: dict[str, JsonValue] = {name: ["F32", [huge], False] for name in names}
    tensors: dict[str, Any] = {}
    for name in names:
        tensors |= {name: np.ones(1, "f4"), f"{name}#at": np.zeros(1, "u4")}
    header = sparse(claims)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=r"decodes to 68,719,476,736 bytes; the limit is"):
            decode(Message(header, tensors), entering_server())  # each alone is within the limit
        with pytest.raises(ProtocolError, match="at most 1,000,000 bytes"):
            decode(Message(header, tensors), entering_server(), Limits(message_bytes=1_000_000))
        with pytest.raises(ProtocolError, match=r"8 tensors; the limit is 4"):
            decoded_specs(header, specs_of(tensors), Limits(tensors=4))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**65),
        st.floats(allow_nan=False),
        st.sampled_from(["cast", "int8", "top_k", "F32", "F16", "w", "w#at", "to", "bfloat16"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["encoding", "options", "tensors", "w", "v", "to", "block"]), inner
        ),
    ),
    max_leaves=12,
)
CLAIM = st.one_of(
    JSON,
    st.tuples(
        st.sampled_from(["F16", "F32", "F64", "U8"]),
        st.lists(st.integers(-1, 40), max_size=3),
        st.booleans(),
    ).map(list),
)
ENTRY = st.fixed_dictionaries(
    {
        "encoding": st.sampled_from(["cast", "int8", "top_k"]),
        "options": st.dictionaries(
            st.sampled_from(["to", "block"]),
            st.one_of(JSON, st.sampled_from(["float16", "bfloat16", 16, 64])),
        ),
        "tensors": st.dictionaries(st.sampled_from(["w", "v", "w#at"]), CLAIM, max_size=3),
    }
)
TENSORS = st.dictionaries(
    st.sampled_from(["w", "w#at", "v", "v#at"]),
    st.builds(
        lambda dtype, values: np.array(values).astype(dtype),
        st.sampled_from(["u1", "u2", "u4", "u8", "f2", "f4", "f8", "i8"]),
        st.lists(st.integers(0, 200), max_size=40),
    ),
    max_size=4,
)


@settings(max_examples=250, deadline=None)
@given(encodings=st.one_of(JSON, st.lists(ENTRY, max_size=5)), tensors=TENSORS)
def test_any_header_over_any_tensors_decodes_or_is_refused(
    encodings: Any, tensors: dict[str, Any]
) -> None:
    message = Message({"encodings": encodings}, tensors)
    limits = Limits(message_bytes=100_000)
    reference = {"w": np.zeros(40, "f4"), "v": np.zeros((2, 3), "f2")}
    try:
        got = decode(message, entering_server(reference), limits)
    except ProtocolError:
        return
    assert got.size_bytes <= limits.message_bytes
    if encodings:
        assert specs_of(got.tensors) == decoded_specs(message.header, specs_of(tensors), limits)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), chain=st.sampled_from(CHAINS))
def test_a_true_message_with_one_thing_changed_decodes_or_is_refused(
    data: st.DataObject, chain: list[dict[str, object]]
) -> None:
    message = encoded(chain)
    header: dict[str, Any] = copy.deepcopy(dict(message.header))
    tensors: dict[str, Any] = dict(message.tensors)
    entry = header["encodings"][data.draw(st.integers(0, len(chain) - 1))]
    what = data.draw(st.sampled_from(["claim", "options", "bytes", "names"]))
    if what == "claim":
        name = data.draw(st.sampled_from(sorted(entry["tensors"])))
        entry["tensors"][name][data.draw(st.integers(0, 2))] = data.draw(JSON)
    elif what == "options":
        entry["options"] = data.draw(st.one_of(JSON, st.just({"to": "float16", "block": 16})))
    elif what == "bytes":
        name = data.draw(st.sampled_from(sorted(tensors)))
        raw = bytearray(tensors[name].tobytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        tensors[name] = np.frombuffer(bytes(raw), tensors[name].dtype).reshape(tensors[name].shape)
    else:
        del tensors[data.draw(st.sampled_from(sorted(tensors)))]
    try:
        got = decode(Message(header, tensors), entering_server(MODEL), Limits(message_bytes=10**6))
    except ProtocolError:
        return
    assert got.size_bytes <= 10**6


def test_many_tensors_take_time_and_header_in_proportion() -> None:
    def seconds(count: int) -> float:
        tensors = {f"layer{number}.weight": np.full(4, 0.5, "f4") for number in range(count)}
        filters = Filters.of([{"filter": "cast", "at": "leaving_site", "to": "float16"}])
        started = time.process_time()
        sent = filters.run(Point.LEAVING_SITE, Message({}, tensors), leaving_site())
        assert len(decode(sent, entering_server()).tensors) == count
        assert len(json.dumps(sent.header)) < count * 64 + 200
        return time.process_time() - started

    few = min(seconds(1000) for _ in range(3))
    assert seconds(16_000) < 60 * few  # 16 times as many; were it quadratic, 256 times as long
