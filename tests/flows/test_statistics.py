"""Federated statistics of the heart disease data in the simulator, against pandas."""

import runpy
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
import yaml
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from pydantic_core import PydanticUndefined

from prefect_federated import simulate
from prefect_federated.errors import ConfigurationError, NotEnoughSites
from prefect_federated.flows.statistics import StatisticsJob, statistics
from prefect_federated.messages import JsonValue
from prefect_federated.statistics.schema import Statistics
from prefect_federated.tasks import statistics_result
from prefect_federated.tasks.statistics_result import (
    DRIFT_EVENT,
    StatisticsRef,
    last_of,
    message_of,
    publish,
)
from tests.agents.network import eventually
from tests.statistics import made

pytestmark = pytest.mark.usefixtures("prefect_api")

EXACT = 1e-12  # relative
HOSPITALS = ["cleveland", "hungary", "switzerland", "va-long-beach"]


@pytest.fixture
def heart(tmp_path: Path) -> Path:
    """Writes the hospitals' folders: each test has ledgers of its own."""
    folder = tmp_path / "heart"
    prepare = Path(__file__).parents[2] / "examples" / "heart" / "prepare.py"
    runpy.run_path(str(prepare))["split_by_hospital"](folder)
    return folder


def run(data: Path, output: Path | None = None, **parameters: JsonValue) -> StatisticsRef:
    result = simulate(
        statistics, data=data, output=output, parameters={"dataset": "heart", **parameters}
    )
    assert isinstance(result.returned, StatisticsRef)
    return result.returned


def read(reference: StatisticsRef) -> Statistics:
    return Statistics.model_validate_json(Path(reference.path).read_text())


def test_released_numbers_of_the_heart_data_are_those_of_all_rows_together(heart: Path) -> None:
    reference = run(heart)
    result = read(reference)
    rows = {site: pd.read_csv(heart / site / "heart.csv") for site in HOSPITALS}
    whole = result.splits["all"]
    assert whole.rows == 920
    assert "id" not in whole.features  # forbidden by each hospital's own file
    compared = set()
    for name, feature in whole.features.items():
        told = [site for site in HOSPITALS if feature.by_site[site].mean is not None]
        if not told:
            continue
        pooled = pd.concat([rows[site][name] for site in told]).dropna().astype(float)
        assert feature.overall.mean == pytest.approx(pooled.mean(), rel=EXACT)
        assert feature.overall.variance == pytest.approx(pooled.var(), rel=EXACT)
        compared.add(name)
        if told == HOSPITALS and feature.kind == "numeric":
            for quantile in feature.overall.quantiles:
                assert quantile.lower is not None
                assert quantile.upper is not None
                assert quantile.lower <= pooled.quantile(quantile.q) <= quantile.upper
    assert {"age", "chol", "num", "oldpeak"} <= compared
    sexes = pd.concat(rows.values())["sex"].value_counts()
    assert whole.features["sex"].overall.categories == dict(sexes)

    swiss = whole.features["chol"].by_site["switzerland"]
    assert (swiss.mean, swiss.std) == (0, 0)
    assert any("switzerland" in note for note in whole.features["chol"].stands_out)
    assert any("hungary, ca: withheld, fewer than 20 values" in line for line in result.withheld)

    report = Path(reference.report).read_text()
    assert "switzerland" in report
    assert "<script src" not in report
    assert message_of(reference).startswith("14 features at 4 of 4 sites; ")
    assert "hungary, ca: withheld, fewer than 20 values" in message_of(reference)


def test_bins_that_are_released_have_numpys_counts_when_the_range_is_given(
    heart: Path,
) -> None:
    result = read(run(heart, ranges={"age": [20, 80]}, bins=3, features=["age", "sex"]))
    feature = result.splits["all"].features["age"]
    overall = np.zeros(3)
    for site in HOSPITALS:
        ages = pd.read_csv(heart / site / "heart.csv")["age"]
        counts, edges = np.histogram(ages, 3, range=(20, 80))
        histogram = feature.by_site[site].histogram
        assert histogram is not None
        assert histogram.edges == edges.tolist()
        is_told = np.array([count is not None for count in histogram.counts])
        assert is_told.any()
        assert [n for n in histogram.counts if n is not None] == counts[is_told].tolist()
        overall += np.where(is_told, counts, 0)
    assert feature.overall.histogram is not None
    assert feature.overall.histogram.counts == overall.tolist()


def test_a_run_is_compared_with_the_last_of_its_name_and_drift_is_an_event(
    heart: Path, tmp_path: Path, prefect_api: str
) -> None:
    wanted: dict[str, JsonValue] = {"features": ["age", "sex", "num"], "correlation": False}
    first = run(heart, tmp_path / "out", name="nightly heart", **wanted)
    assert read(first).compared is None
    again = read(run(heart, tmp_path / "out", name="nightly heart", **wanted))
    assert again.compared is not None
    assert again.compared.run == read(first).run
    assert not any(drift.is_past_threshold for drift in again.compared.drifts)

    file = heart / "cleveland" / "heart.csv"
    older = pd.read_csv(file)
    older["age"] += 12
    older.to_csv(file, index=False)
    third = run(heart, tmp_path / "out", name="nightly heart", **wanted)
    result = read(third)
    assert result.compared is not None
    past = {(d.site, d.feature) for d in result.compared.drifts if d.is_past_threshold}
    assert ("cleveland", "age") in past
    assert not any(site == "hungary" for site, _ in past)
    assert third.drifted == len(past)

    with get_client(sync_client=True) as client:
        resource = {"id": ["federated.statistics.nightly heart"]}

        def told() -> list[dict[str, Any]]:
            asked = {"filter": {"resource": resource}, "limit": 50}
            answer = client.request("POST", "/events/filter", json=asked).raise_for_status()
            events: list[dict[str, Any]] = answer.json()["events"]
            return events if len(events) >= len(past) else []

        events = eventually(told, "the drift is an event")
        assert {event["event"] for event in events} == {DRIFT_EVENT}
        of_age = next(e["payload"] for e in events if e["payload"]["site"] == "cleveland")
        assert of_age["feature"] == "age"
        assert of_age["run"] == result.run
        assert of_age["ks"] > 0.1


def test_an_attempt_after_one_that_got_to_its_end_is_compared_with_the_run_before_and_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = made.heart()
    age_only = {
        name: split.model_copy(update={"features": {"age": split.features["age"]}})
        for name, split in whole.splits.items()
    }
    first = whole.model_copy(update={"name": str(uuid4()), "run": "first", "splits": age_only})
    second = first.model_copy(update={"run": "second"})
    told: list[str] = []
    monkeypatch.setattr(statistics_result, "_tell", lambda result, _: told.append(result.run))

    @flow
    def attempts() -> StatisticsRef:
        publish(first, last_of(first.name, "first"), 0.2, 0.1)
        publish(second, last_of(first.name, "second"), 0.2, 0.1)
        return publish(second, last_of(first.name, "second"), 0.2, 0.1)

    again = read(attempts())
    assert again.compared is not None
    assert again.compared.run == "first"
    assert told == ["first", "second"]


def test_the_ui_gets_a_summary_and_a_link_to_the_report(heart: Path) -> None:
    reference = run(heart, features=["age", "chol"], name="shown")
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[read(reference).run])
            )
        )
    (summary,) = [artifact for artifact in found if artifact.key == "statistics-shown"]
    links = [artifact for artifact in found if artifact.key == "statistics-shown-report"]
    assert "| chol" in str(summary.data)
    assert "data:image/png;base64," in str(summary.data)
    assert Path(reference.report).as_uri() in str(links[0].data)


def test_what_a_broken_or_lying_site_sends_makes_it_a_failed_one_and_the_rest_stands(
    heart: Path, tmp_path: Path
) -> None:
    liars = ["no-answer", "no-json", "other-schema", "below-zero"]
    for name in ("honest", "breaks-off", "no-file", *liars):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("honest", "breaks-off"):
        for file in ("heart.csv", "datasets.yaml"):
            shutil.copy(heart / "cleveland" / file, tmp_path / "data" / name)
    reference = run(
        tmp_path / "data",
        executor="tests.flows.lying_statistics",
        features=["age"],
        absent_after_s=5,
    )
    result = read(reference)
    assert {site for site, state in result.sites.items() if state.state == "failed"} == {
        *liars, "no-file",
    }  # fmt: skip
    reasons = {site: state.reason for site, state in result.sites.items()}
    assert "has no 'statistics'" in reasons["no-answer"]
    assert "not in the schema: JSON" in reasons["no-json"]
    assert "not in the schema: rows" in reasons["other-schema"]
    assert "'age': its variance is -1" in reasons["below-zero"]
    assert "DatasetFileError" in reasons["no-file"]
    age = result.splits["all"].features["age"]
    assert set(age.by_site) == {"honest", "breaks-off"}
    assert age.by_site["honest"].histogram is not None
    assert age.by_site["breaks-off"].mean is not None
    assert age.by_site["breaks-off"].histogram is None
    assert any(
        line.startswith("breaks-off: histograms withheld, it did not answer 'count'")
        for line in reference.withheld
    )
    message = message_of(reference)
    assert "failed: below-zero (" in message
    assert "its variance is -1" in message
    assert "no-file (DatasetFileError: " in message
    assert "schema: JSON: json_invalid), " in message  # and no more than its first sentence


def test_a_message_gives_a_reason_of_several_sites_once_and_no_more_than_a_line_of_it() -> None:
    names = [f"site-{number}" for number in range(8)]
    reasons = dict.fromkeys(names, "it is out of memory")
    several = StatisticsRef(
        path="", report="", name="", features=0, sites=dict.fromkeys(names, "failed"),
        reasons=reasons,
    )  # fmt: skip
    assert message_of(several).endswith(f"failed: {', '.join(names)} (it is out of memory)")
    all_differ = {name: f"{name} is away" for name in names}
    message = message_of(several.model_copy(update={"reasons": all_differ}))
    assert message.endswith("site-4 (site-4 is away), site-5, site-6, site-7")


def test_a_dataset_and_columns_that_no_site_has_fail_the_job_and_say_what_is_near(
    heart: Path,
) -> None:
    with pytest.raises(NotEnoughSites) as caught:
        run(heart, dataset="hart")
    assert "cleveland, hungary and 2 more: failed, DatasetNotFound: " in str(caught.value)
    assert str(caught.value).count("Did you mean 'heart'") == 1
    with pytest.raises(ConfigurationError, match=r"no site has .* cholesterol .*There is age"):
        run(heart, features=["cholesterol"])


def test_splits_and_a_column_to_group_by_that_no_site_has_fail_the_job_and_say_what_is_near(
    heart: Path,
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(heart, splits=["al"], features=["age"])
    assert str(caught.value) == (
        "no site has any of the splits al in the dataset 'heart'. cleveland, hungary and 2 more: "
        "there is no such split. Did you mean 'all'? There is all."
    )
    with pytest.raises(ConfigurationError) as caught:
        run(heart, group_by="sexx", features=["age"])
    assert str(caught.value).startswith(
        "no site can group the dataset 'heart' by 'sexx'. cleveland, hungary and 2 more: there is "
        "no column 'sexx' that may be used. Did you mean 'sex'?"
    )
    with pytest.raises(ConfigurationError, match="column 'age' holds numeric values"):
        run(heart, group_by="age", features=["age"])


def test_what_only_some_sites_lack_completes_the_job_and_is_said_first(heart: Path) -> None:
    file = heart / "cleveland" / "heart.csv"
    pd.read_csv(file).rename(columns={"sex": "gender"}).to_csv(file, index=False)
    reference = run(
        heart,
        group_by="sex",
        splits=["all", "tset"],
        ranges={"agee": [0, 100], "chol": [0, 600]},
        features=["age", "ca", "thal"],
    )
    assert read(reference).notes[:2] == [
        "ranges name 'agee', which is not among the features. Did you mean 'age'?",
        "ranges name 'chol', which is not among the features.",
    ]
    shown = message_of(reference).partition("; ")[2]
    assert shown.count("there is no ") == 3
    assert shown.endswith(" more")


def test_a_range_of_a_column_that_no_site_has_is_a_note(heart: Path) -> None:
    result = read(run(heart, ranges={"agee": [0, 100]}, correlation=False, quantiles=[]))
    assert "ranges name 'agee', which no site has. Did you mean 'age'?" in result.notes


def test_a_deployments_form_has_a_field_for_each_parameter_and_needs_the_dataset_only() -> None:
    schema = statistics.parameters
    assert schema.required == ["dataset"]
    for name in ("bins", "ranges", "quantiles", "group_by", "psi_threshold", "min_sites"):
        assert schema.properties[name]["description"]


def test_the_pages_automation_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    block = page[page.index("```yaml") + 7 :].split("```")[0]
    content = yaml.safe_load(block.replace("DEPLOYMENT-ID", str(uuid4())))
    (automation,) = [AutomationCore.model_validate(each) for each in content["automations"]]
    assert isinstance(automation.trigger, EventTrigger)
    assert automation.trigger.expect == {DRIFT_EVENT}


def test_the_page_lists_each_parameter_of_the_job_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    rows = {
        line.split("|")[1].strip(" `"): line.split("|")[2].strip()
        for line in page[page.index("## Parameters") : page.index("## How exact")].splitlines()
        if line.startswith("| `")
    }
    own = {
        name: field
        for name, field in StatisticsJob.model_fields.items()
        if name in StatisticsJob.__annotations__
    }
    assert set(rows) == set(own)
    words = {"all": None, "none": None, "": PydanticUndefined, "true": True}
    for name, shown in rows.items():
        default = own[name].default
        if name in ("name", "executor", "ranges"):
            continue  # said in words
        if name == "quantiles":
            assert [float(q) for q in shown.split(",")] == default
        else:
            assert (words[shown] if shown in words else float(shown)) == default
