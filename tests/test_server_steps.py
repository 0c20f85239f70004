"""The server's step, against its closed form."""

import numpy as np
import pytest

from prefect_federated.errors import UpdateRejected
from prefect_federated.server_steps import stepped


def test_float_tensors_move_by_the_learning_rate_and_keep_their_dtype() -> None:
    model = {"w": np.array([1.0, 2.0], np.float32), "b": np.array(3.0)}
    change = {"w": np.array([4.0, -8.0], np.float32), "b": np.array(-2.0)}
    after = stepped(model, change, lr=0.25)
    np.testing.assert_array_equal(after["w"], [2.0, 0.0])
    assert after["w"].dtype == np.float32
    assert after["b"].tolist() == 2.5
    assert model["w"].tolist() == [1.0, 2.0]


def test_counters_are_taken_and_what_the_change_lacks_stays() -> None:
    model = {"seen": np.array([3]), "own": np.ones(2)}
    after = stepped(model, {"seen": np.array([5])}, lr=0.1)
    assert after["seen"].tolist() == [5]
    assert after["own"] is model["own"]


@pytest.mark.parametrize("name", ["w", "new"])
def test_a_change_of_another_shape_or_name_is_refused(name: str) -> None:
    with pytest.raises(UpdateRejected, match=f"tensor '{name}' of shape"):
        stepped({"w": np.zeros(3)}, {name: np.zeros(4)}, lr=1)
