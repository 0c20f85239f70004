"""Error feedback: nothing is lost for good, over rounds, restarts and rounds done again."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from prefect_federated.errors import FilterFailed
from prefect_federated.filters import Filters, Point, decode
from prefect_federated.messages import Message
from tests.filters.parts import entering_server, leaving_site, normal

SIZE = 3000
MODEL = {"w": np.zeros(SIZE, "f4"), "v": np.zeros((20, 30), "f4")}
ONE_ROUND = """
import json, sys
from pathlib import Path
import numpy as np
from prefect_federated.filters import Filters, Passage, Point
from prefect_federated.messages import Message

state, entry = Path(sys.argv[1]), json.loads(sys.argv[2])
change = np.load(state / "change.npy")
model = {"w": np.zeros_like(change), "v": np.zeros((20, 30), "f4")}
update = Message({}, {"w": change, "v": np.ones((20, 30), "f4")})
passage = Passage(Point.LEAVING_SITE, "clinic-a", "train", 1, state, model)
Filters.of([entry]).run(passage.point, update, passage)
"""
ENCODINGS: list[dict[str, object]] = [
    {"filter": "int8", "block": 64},
    {"filter": "top_k", "fraction": 0.05},
]


def step(spec: dict[str, object]) -> Callable[..., NDArray[np.float64]]:
    """Returns a function that sends one change through filters that live as long as it."""
    filters = Filters.of([{"at": "leaving_site", **spec}])

    def send(
        change: NDArray[np.float32],
        round: int,
        state: Path | None = None,
        kind: str = "train",
        site: str = "clinic-a",
    ) -> NDArray[np.float64]:
        passage = leaving_site(MODEL, round, state, kind, site)
        update = Message({}, {"w": change, "v": np.ones((20, 30), "f4")})
        sent = filters.run(Point.LEAVING_SITE, update, passage)
        got: NDArray[np.float64] = decode(sent, entering_server(MODEL)).tensors["w"].astype("f8")
        return got

    return send


@pytest.mark.parametrize("spec", ENCODINGS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_sum_of_what_was_sent_stays_by_the_sum_of_what_was_meant(
    spec: dict[str, object], on_disk: bool, tmp_path: Path
) -> None:
    send = step(spec)
    meant, sent = np.zeros(SIZE), np.zeros(SIZE)
    distances = []
    for round in range(1, 201):
        change = normal(SIZE, seed=round) * np.float32(0.1) + np.float32(0.05)
        sent += send(change, round, tmp_path if on_disk else None)
        meant += change
        distances.append(np.abs(sent - meant).max())
    # The distance is the last residual: it does not grow with the rounds, while the sums do (to
    # about 10), and without feedback top_k would be off by nearly all of that.
    bound = 0.01 if spec["filter"] == "int8" else 4
    assert max(distances) < bound
    assert max(distances[150:]) < 1.5 * max(distances[50:100])
    assert np.abs(meant).mean() > 9

    plain = step({**spec, "feedback": False})
    without = sum(
        plain(normal(SIZE, seed=r) * np.float32(0.1) + np.float32(0.05), r) for r in range(1, 201)
    )
    assert np.abs(without - meant).mean() > 2 * np.abs(sent - meant).mean()


def test_a_residual_file_is_a_safetensors_file_of_what_was_not_sent(tmp_path: Path) -> None:
    send = step(ENCODINGS[1])
    change = normal(SIZE)
    sent = send(change, 1, tmp_path)
    kept = load_file(tmp_path / "filters" / "top_k.train.safetensors")
    np.testing.assert_array_equal(kept["w"], np.where(sent == 0, change, 0))
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize("spec", ENCODINGS)
def test_a_restart_goes_on_where_the_process_before_ended(
    spec: dict[str, object], tmp_path: Path
) -> None:
    first, second = normal(SIZE, seed=1), normal(SIZE, seed=2)
    np.save(tmp_path / "change.npy", first)
    entry = json.dumps({"at": "leaving_site", **spec})
    command = [sys.executable, "-c", ONE_ROUND, str(tmp_path), entry]
    subprocess.run(command, check=True, timeout=60)

    one_process = step(spec)
    one_process(first, 1)
    np.testing.assert_array_equal(step(spec)(second, 2, tmp_path), one_process(second, 2))


def test_a_round_done_again_starts_from_before_its_first_attempt(tmp_path: Path) -> None:
    send = step(ENCODINGS[1])
    changes = [normal(SIZE, seed=seed) for seed in range(4)]
    send(changes[1], 1, tmp_path)
    first = send(changes[2], 2, tmp_path)
    np.testing.assert_array_equal(send(changes[2], 2, tmp_path), first)
    np.testing.assert_array_equal(step(ENCODINGS[1])(changes[2], 2, tmp_path), first)
    third = send(changes[3], 3, tmp_path)
    other = step(ENCODINGS[1])
    for round in (1, 2):
        other(changes[round], round)
    np.testing.assert_array_equal(third, other(changes[3], 3))


def test_sites_and_kinds_have_residuals_of_their_own() -> None:
    send = step(ENCODINGS[1])
    change = normal(SIZE)
    fresh = send(change, 1)
    send(change, 2)
    np.testing.assert_array_equal(send(change, 2, site="clinic-b"), fresh)
    np.testing.assert_array_equal(send(change, 2, kind="fine_tune"), fresh)


def test_an_encoding_that_fails_leaves_the_residual_as_it_was(tmp_path: Path) -> None:
    send = step(ENCODINGS[0])
    send(normal(SIZE), 1, tmp_path)
    path = tmp_path / "filters" / "int8.train.safetensors"
    before = path.read_bytes()
    with pytest.raises(FilterFailed):
        send(np.full(SIZE, np.nan, "f4"), 2, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}", b"\x02" * 40])
def test_a_damaged_file_costs_its_residual_only(
    damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    send = step(ENCODINGS[1])
    fresh = send(normal(SIZE), 1, tmp_path)
    for path in (tmp_path / "filters").iterdir():
        path.write_bytes(damage)
    np.testing.assert_array_equal(send(normal(SIZE), 2, tmp_path), fresh)
    assert "is not readable" in caplog.text


def test_a_truncated_file_is_not_read(tmp_path: Path) -> None:
    send = step(ENCODINGS[1])
    fresh = send(normal(SIZE), 1, tmp_path)
    path = tmp_path / "filters" / "top_k.train.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(send(normal(SIZE), 2, tmp_path), fresh)


def test_a_tensor_that_changed_its_size_starts_anew(tmp_path: Path) -> None:
    send = step(ENCODINGS[0])
    send(normal(SIZE), 1, tmp_path)
    larger = normal(SIZE + 1)
    np.testing.assert_array_equal(send(larger, 2, tmp_path), step(ENCODINGS[0])(larger, 2))


def test_a_kind_of_any_name_is_kept_in_the_state_folder(tmp_path: Path) -> None:
    step(ENCODINGS[0])(normal(SIZE), 1, tmp_path, kind="../../etc/kind")
    assert [path.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path / "filters"]
