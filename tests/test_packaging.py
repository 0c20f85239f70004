"""What ships is what is there, and importing it stays light."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import prefect_federated

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = ("agents", "flows", "provisioning", "tasks")


def test_pyproject_lists_every_package() -> None:
    found = {"prefect_federated"}
    for folder in (ROOT / "prefect_federated", *(ROOT / name for name in MAPPED)):
        for module in folder.rglob("*.py"):
            parts = module.parent.relative_to(ROOT).parts
            if parts[0] != "prefect_federated":
                parts = ("prefect_federated", *parts)
            found.add(".".join(parts))
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_package_has_an_init() -> None:
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        folder = ROOT / places.get(package, package.replace(".", "/"))
        assert (folder / "__init__.py").is_file(), package


@pytest.mark.parametrize("name", MAPPED)
def test_a_folder_at_the_top_level_is_mapped_and_linked(name: str) -> None:
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    assert places[f"prefect_federated.{name}"] == name
    link = ROOT / "prefect_federated" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_the_folders_at_the_top_level_are_no_import_names() -> None:
    top = {package.partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    assert top == {"prefect_federated"}


def test_types_ship() -> None:
    assert (ROOT / "prefect_federated" / "py.typed").is_file()
    assert PROJECT["tool"]["setuptools"]["package-data"]["prefect_federated"] == ["py.typed"]


def test_each_file_beside_the_modules_ships() -> None:
    for package, names in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        beside = (p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".py")
        assert sorted(beside) == sorted(names), package


def test_the_extra_all_has_every_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = {name for each in extras["all"] for name in each[:-1].partition("[")[2].split(",")}
    assert named == set(extras) - {"all", "dev"}


def _imported_by(*statements: str) -> set[str]:
    code = "; ".join((*statements, "import sys", "print(*sys.modules)"))
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_imports_no_prefect_and_no_framework() -> None:
    modules = _imported_by(
        "import prefect_federated",
        "import prefect_federated.transport.tls_client",
        "import prefect_federated.transport.tls_server",
        "import prefect_federated.transport.inproc",
        "import prefect_federated.aggregators",
        "import prefect_federated.provisioning",
    )
    heavy = {"prefect", "grpc", "torch", "xgboost", "sklearn", "matplotlib", "pandas", "tenseal"}
    heavy |= {"tensorboard", "mlflow", "pytorch_lightning", "transformers", "peft"}
    assert modules & heavy == set()


def test_every_public_name_is_there_and_others_are_not() -> None:
    for name in prefect_federated.__all__:
        assert getattr(prefect_federated, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = prefect_federated.simulat
