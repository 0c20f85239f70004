import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from prefect_federated.aggregators import weighted_mean
from prefect_federated.executors import Site, load_executor, site_seed
from prefect_federated.messages import Tensors

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load_example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Imports a module of an example as a site does, with the example's folder on the path."""
    before = set(sys.modules)

    def load(example: str, module: str) -> ModuleType:
        monkeypatch.syspath_prepend(EXAMPLES / example)
        return importlib.import_module(module)

    yield load
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(EXAMPLES) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


@pytest.fixture
def run_rounds(tmp_path: Path) -> Callable[[str, Mapping[str, Path], int], Tensors]:
    """Federated averaging without a federation: executor's path, the sites' folders, rounds."""

    def run(path: str, folders: Mapping[str, Path], rounds: int) -> Tensors:
        loaded = load_executor(path)
        sites = [Site(n, own, tmp_path, {}, site_seed(0, n)) for n, own in folders.items()]
        model = loaded.function("initialize")({}, sites[0]).tensors
        for number in range(1, rounds + 1):
            train = loaded.function("train")
            model = weighted_mean(train(model, replace(site, round=number)) for site in sites)
        return model

    return run
