"""A job's fields as a flow's parameters, and as a form in the Prefect UI."""

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import Field, ValidationError

from prefect_federated.errors import ConfigurationError
from prefect_federated.flows.fedavg import FedAvgJob, fedavg
from prefect_federated.tasks.parameters import JobParameters, takes


def test_the_form_of_a_job_has_each_field_with_description_range_and_default() -> None:
    schema = parameter_schema(fedavg)
    fields = schema.properties
    assert fields.keys() == FedAvgJob.model_fields.keys()
    assert schema.required == ["executor"]
    for name, field in FedAvgJob.model_fields.items():
        assert " ".join(str(field.description).split()) in " ".join(
            fields[name]["description"].split()
        )
        if not field.is_required():
            assert fields[name]["default"] == field.default
    assert (fields["rounds"]["minimum"], fields["rounds"]["maximum"]) == (1, 1_000_000)
    assert fields["quorum"]["exclusiveMinimum"] == 0
    assert fields["late_weight"]["maximum"] == 1
    assert fields["updates_in_memory"]["minimum"] == 1
    assert {"type": "integer", "minimum": 1} in fields["sites_per_round"]["anyOf"]
    assert fields["seed"]["exclusiveMaximum"] == 2**32
    assert fields["executor"]["pattern"].startswith("^[A-Za-z_]")
    assert fields["executor"]["position"] == 0


def test_a_flow_keeps_its_own_description() -> None:
    assert str(fedavg.description).startswith("Trains one model on the data of many sites")


class Job(JobParameters):
    strength: float = Field(default=0.5, ge=0, description="How strong.")


@takes(Job)
def show(job: Job) -> Job:
    """Returns the job."""
    return job


def test_fields_are_taken_one_by_one_and_checked() -> None:
    job = show(executor="a.b:c", strength=2)
    assert (job.executor, job.strength, job.quorum) == ("a.b:c", 2.0, 0.7)
    with pytest.raises(ValidationError, match="strength"):
        show(executor="a", strength=-1)
    with pytest.raises(ValidationError, match="extra"):
        show(executor="a", strenght=1)


@pytest.mark.parametrize(
    "path", ["", "a b", "a:b:c", "/etc/x.py", "a.py:f()", "../x", "1a", "a:", "a\n"]
)
def test_an_executor_is_an_import_path_and_nothing_else(path: str) -> None:
    with pytest.raises(ValidationError, match="executor"):
        JobParameters(executor=path)


@pytest.mark.parametrize(
    ("quorum", "needed"), [(0.7, 7), (1, 10), (0.01, 1), (2, 2), (12, 12), (0.3, 3)]
)
def test_a_quorum_is_a_share_up_to_one_and_a_count_above(quorum: float, needed: int) -> None:
    assert JobParameters(executor="a", quorum=quorum).updates_needed(10) == needed


@pytest.mark.parametrize("quorum", [0, -1, 2.5])
def test_a_quorum_of_no_possible_size_is_refused(quorum: float) -> None:
    with pytest.raises(ValidationError, match="quorum"):
        JobParameters(executor="a", quorum=quorum)


def test_the_sites_of_a_round_are_a_count_or_a_share() -> None:
    assert FedAvgJob(executor="a", sites_per_round=10).sites_per_round == 10
    assert isinstance(FedAvgJob(executor="a", sites_per_round=1).sites_per_round, int)
    assert isinstance(FedAvgJob(executor="a", sites_per_round=1.0).sites_per_round, float)
    for wrong in (0, -1, 1.5, 0.0):
        with pytest.raises(ValidationError, match="sites_per_round"):
            FedAvgJob(executor="a", sites_per_round=wrong)


def test_filters_are_checked_when_the_job_is_given() -> None:
    (spec,) = JobParameters(
        executor="a", filters=[{"filter": "cast", "at": "leaving_site", "to": "float16"}]
    ).filters
    assert spec.to_json() == {"filter": "cast", "at": "leaving_site", "to": "float16"}
    with pytest.raises(ConfigurationError, match="no such filter"):
        JobParameters(executor="a", filters=[{"filter": "catts", "at": "leaving_site"}])


def test_jobs_do_not_share_a_config() -> None:
    one, other = JobParameters(executor="a"), JobParameters(executor="a")
    one.config["lr"] = 1
    assert other.config == {}
