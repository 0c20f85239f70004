"""Flows are known where their packages are not; a job that needs one says what to install."""

import subprocess
import sys

import pytest

from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.installed import needs

_WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("sklearn", "pandas", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from prefect_federated.flows.svm import svm
from prefect_federated.flows.sklearn import sklearn
try:
    svm.fn(dataset="heart", label="sick")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_package_that_is_not_there_is_named_with_what_brings_it() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"package 'nowhere_to_be_found'.*\[sklearn\]"),
        needs("sklearn"),
    ):
        import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401


def test_the_flows_are_known_without_scikit_learn_and_a_job_says_what_to_install() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _WITHOUT], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("ConfigurationError this job needs the package 'sklearn'")
    assert "prefect-federated[sklearn,statistics]" in found.stdout
