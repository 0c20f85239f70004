"""The simulator: what it is asked for, what it gives, and what it says to what cannot be."""

from pathlib import Path

import numpy as np
import pytest
from prefect import flow
from safetensors.numpy import load_file

from prefect_federated import simulate
from prefect_federated.agents.simulator import load_flow
from prefect_federated.cli.simulate import simulate_command
from prefect_federated.errors import ConfigurationError, ExecutorNotFound, NotEnoughSites
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.messages import JsonValue

EXECUTOR = "tests.flows.trial_executors"
JOB: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 1}

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_sites_may_be_named_and_the_model_is_a_file_that_any_tool_opens(tmp_path: Path) -> None:
    result = simulate("fedavg", sites=["a", "b"], output=tmp_path, parameters=JOB)
    assert [row["sites"] for row in result.metrics] == ["1/1", "2/2", "2/2"]
    assert result.path.is_relative_to(tmp_path)
    for name, array in load_file(result.path).items():
        np.testing.assert_array_equal(result.model[name], array)
    assert [path.name for path in (tmp_path / "state" / result.path.parent.name).iterdir()]


def test_the_folders_of_the_data_are_the_sites(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "reads_its_folder.py").write_text(
        "import numpy as np\n"
        "from prefect_federated import Update, executor\n"
        "@executor\n"
        "def initialize(model, site):\n"
        "    return Update({'w': np.zeros(1)})\n"
        "@executor\n"
        "def train(model, site):\n"
        "    return Update({'w': np.loadtxt(site.data / 'rows.csv', ndmin=1)})\n"
    )
    for name, value in (("cleveland", 3), ("hungary", 5)):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "rows.csv").write_text(str(value))
    result = simulate(
        fedavg,
        data=tmp_path / "data",
        code=[code],
        parameters={"executor": "reads_its_folder", "rounds": 1},
    )
    assert result.model["w"] == [4.0]


@pytest.mark.parametrize("name", ["nonesuch", "no.such.module:flow", "json:dumps", "json:nothing"])
def test_an_unknown_flow_is_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        simulate(name, parameters=JOB)
    assert load_flow("fedavg") is load_flow("prefect_federated.flows.fedavg:fedavg")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "needs the parameter 'executor'"),
        ({"executor": EXECUTOR, "round": 3}, "has no parameter 'round'; it has: .*rounds"),
        ({"executor": EXECUTOR, "rounds": 0}, "greater than or equal to 1"),
        ({"executor": EXECUTOR, "quorum": 0}, "greater than 0"),
        ({"executor": "rm -rf /"}, "pattern"),
        ({"executor": EXECUTOR, "sites": "site-1"}, "list"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_before_anything_runs(
    parameters: dict[str, JsonValue], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"the flow 'fedavg'(.|\n)*{says}"):
        simulate(fedavg, parameters=parameters)


def test_folders_and_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere is not a folder"):
        simulate(fedavg, code=[tmp_path / "nowhere"], parameters=JOB)
    with pytest.raises(ConfigurationError, match="at least 1 site, not 0"):
        simulate(fedavg, sites=0, parameters=JOB)


def test_an_executor_that_does_not_import_ends_the_job_with_the_reason() -> None:
    with pytest.raises(ExecutorNotFound, match=r"`import no_such_package` failed here"):
        simulate(fedavg, parameters={"executor": "no_such_package"})


def test_more_sites_than_there_are_end_the_job_with_the_reason() -> None:
    with pytest.raises(NotEnoughSites, match="asks for 5 sites; the simulation has 2"):
        simulate(fedavg, sites=2, parameters={**JOB, "min_sites": 5})
    with pytest.raises(ConfigurationError, match=r"names the sites \['site-9'\]; .*'site-1'"):
        simulate(fedavg, sites=2, parameters={**JOB, "sites": ["site-1", "site-9"]})


def test_a_loop_that_fails_at_every_site_ends_the_job_with_the_reasons() -> None:
    parameters: dict[str, JsonValue] = {"executor": f"{EXECUTOR}:no_data", "rounds": 1}
    with pytest.raises(NotEnoughSites, match=r"site-\d: its loop ended: FileNotFoundError: rows"):
        simulate(fedavg, parameters=parameters)


def test_a_loop_may_take_its_time_before_it_asks_for_tasks() -> None:
    parameters: dict[str, JsonValue] = {"executor": f"{EXECUTOR}:slow_loop", "rounds": 1}
    result = simulate(fedavg, sites=3, threads=1, parameters=parameters)
    assert [row["sites"] for row in result.metrics] == ["1/1", "3/3"]


def test_a_loop_that_fails_at_one_site_leaves_its_turn_to_the_others() -> None:
    result = simulate(
        fedavg,
        sites=3,
        threads=1,
        parameters={"executor": f"{EXECUTOR}:broken_loop", "rounds": 2, "quorum": 0.5},
    )
    assert [row["sites"] for row in result.metrics] == ["1/1", "2/3", "2/2"]
    assert "MemoryError: the second site is too small" in str(result.metrics[1]["failures"])


def test_a_flow_that_is_no_job_runs_too() -> None:
    @flow
    def seven() -> int:
        return 7

    result = simulate(seven)
    assert (result.returned, result.model, result.metrics) == (7, {}, [])


def test_the_command_prints_a_table_of_metrics_and_where_the_models_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for a job with filters, whose rows have columns that are no numbers."""
    simulate_command(
        "fedavg",
        sites="2",
        output=tmp_path,
        param=(
            f"executor={EXECUTOR}",
            "rounds=1",
            "best_by=-loss",
            'filters=[{"filter": "cast", "at": "leaving_server", "to": "bfloat16"}]',
        ),
    )
    printed = capsys.readouterr().out
    assert "loss" in printed
    assert "filters" not in printed
    assert f"Model: {tmp_path}" in printed
    assert f"Best model, after round 1: {tmp_path}" in printed
