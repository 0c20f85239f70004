import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prefect_federated import simulate

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning"


@pytest.mark.usefixtures("prefect_api")
def test_a_lightning_script_reads_digits_in_a_federation(
    load_example: Callable[[str, str], ModuleType], tmp_path: Path
) -> None:
    load_example("digits", "prepare").divide(tmp_path / "data", 2)
    result = simulate(
        "fedavg",
        data=tmp_path / "data",
        code=[EXAMPLE],
        output=tmp_path / "output",
        parameters={"executor": "digits_lightning:main", "rounds": 3, "best_by": "accuracy"},
    )
    rows = [row for row in result.metrics if "val_accuracy" in row]
    accuracies = [float(str(row["val_accuracy"])) for row in rows]
    assert accuracies[0] < 0.3  # the untrained model, measured before its first training
    assert accuracies[-1] > 0.75  # after two rounds; 0.87 to 0.89 seen
    assert {"train_loss", "val_loss"} <= set(rows[0])
    assert all(np.isfinite(array).all() for array in result.model.values())


def test_the_readmes_diff_is_the_script() -> None:
    script = (EXAMPLE / "digits_lightning.py").read_text().splitlines()
    diff = re.search(r"```diff\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert diff is not None
    lines = diff[1].splitlines()
    after = [line[1:] for line in lines if not line.startswith("-")]
    start = script.index(after[-1])
    assert script[start - len(after[3:]) + 1 : start + 1] == after[3:]
    assert after[0] in script
    added = [line for line in lines if line.startswith("+")]
    assert len(added) == 3 + 1  # with the line of fit(), which has moved
