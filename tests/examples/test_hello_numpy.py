from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from prefect_federated.messages import Tensors

EXAMPLE = Path(__file__).parents[2] / "examples" / "hello_numpy" / "hello_numpy.py"


def test_the_smallest_job_is_under_forty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40


def test_ten_rounds_of_the_smallest_job_find_the_slopes(
    load_example: Callable[[str, str], ModuleType],
    run_rounds: Callable[[str, Mapping[str, Path], int], Tensors],
    tmp_path: Path,
) -> None:
    load_example("hello_numpy", "hello_numpy")
    model = run_rounds("hello_numpy", {"site-1": tmp_path, "site-2": tmp_path}, 10)
    # 400 rows with noise of 0.1: a standard error of 0.005 each.
    slopes = np.asarray(model["slopes"], np.float64)
    np.testing.assert_allclose(slopes, [2.0, -3.0, 0.5], atol=0.03)
