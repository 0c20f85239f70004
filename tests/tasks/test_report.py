"""What a person sees of a running job: artifacts in the Prefect UI, lines of its log."""

import logging
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact

from prefect_federated import simulate
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.messages import JsonValue
from prefect_federated.tasks import report
from prefect_federated.tasks.at_work import AtWork
from prefect_federated.tasks.report import Reporter
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Moment
from tests.agents.network import eventually

EXECUTOR = "tests.tasks.streaming_executor"

pytestmark = pytest.mark.usefixtures("prefect_api")


def said(site: str, round: int, **detail: JsonValue) -> Moment:
    name = "progressed" if "done" in detail else "metrics_logged"
    return Moment(name, site, round, {"kind": "train", **detail})


def artifacts(key: str) -> list[Artifact]:
    """Returns the artifacts whose keys begin so, as the server has them."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_=f"{key}%")), limit=200
        )


def test_a_job_leaves_its_table_its_curves_and_the_progress_of_each_site(tmp_path: Path) -> None:
    named = fedavg.with_options(name="seen_by_people")
    result = simulate(
        named, sites=["a", "Site_2"], output=tmp_path,
        parameters={"executor": EXECUTOR, "rounds": 2},
    )  # fmt: skip
    found = {artifact.key: artifact for artifact in artifacts("seen-by-people")}
    assert found["seen-by-people-progress"].data == 100.0
    for site, key in (("a", "a"), ("Site_2", "site-2")):
        progress = found[f"seen-by-people-progress-{key}"]
        assert progress.data == 100.0
        assert progress.description == f"{site}: round 2, train, epoch 2/2, loss 0.5, done"
    table = str(found["seen-by-people-rounds"].data)
    assert '"val_loss": 0.5' in table
    assert "site_metrics" not in table
    curves = str(found["seen-by-people-curves"].data)
    assert "data:image/png;base64," in curves
    assert "| **all sites** | 0.3333 |" in curves  # the job's "evaluate" is the last point
    assert "| Site_2 | 0.3333 |" in curves
    own = result.metrics[1]["site_metrics"]
    assert own == {"a": {"val_loss": 1.0}, "Site_2": {"val_loss": 1.0}}


def test_sites_show_up_to_sixteen_and_about_one_news_a_second() -> None:
    @flow(name="seen-busy")
    def job() -> None:
        hub = Hub("job", 1, ("a",))
        with Reporter(rounds=3) as reporter:
            reporter.listen_to(hub)
            for done in range(1, 101):
                for number in range(20):
                    tell(hub, said(f"site-{number}", 3, done=float(done), total=100.0, unit="step"))
            eventually(lambda: len(artifacts("seen-busy-progress-")) > 0, "a site shows")
            shown = len(artifacts("seen-busy-progress-"))
            assert shown < 6
        found = artifacts("seen-busy-progress-")
        assert len(found) == 16
        assert {artifact.data for artifact in found} == {100.0}

    job()


def tell(hub: Hub, moment: Moment) -> None:
    for listener in hub.listeners:
        listener(moment)


def test_a_long_round_has_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_LINE_EVERY_S", 0.5)
    monkeypatch.setattr(report, "_LOOK_S", 0.01)

    logged: list[int] = []

    def lines() -> list[str]:
        said = [record.getMessage() for record in caplog.records]
        return [line for line in said if line.startswith("round 3: site-1 epoch 2/5")]

    @flow
    def job() -> None:
        hub = Hub("job", 1, ("a",))
        with Reporter(rounds=3) as reporter:
            reporter.listen_to(hub)
            for _ in range(2):
                tell(hub, said("site-1", 3, done=2.0, total=5.0, unit="epoch"))
                tell(hub, said("site-1", 3, metrics={"train_loss": 0.31}))
                tell(hub, said("site-2", 3, metrics={"train_loss": "nan"}, dropped=7))
                logged.append(len(lines()))
                eventually(lambda: len(lines()) > logged[-1], "a line is logged")
            assert len(lines()) == 2

    with caplog.at_level(logging.INFO):
        job()
    assert lines()[0] == "round 3: site-1 epoch 2/5, train_loss 0.31; site-2 train_loss nan"
    assert "site-2 dropped 7 values: it logs too many" in caplog.text


def test_what_is_said_of_sites_at_work_is_of_the_newest_round_and_those_still_at_it() -> None:
    at_work = AtWork()
    assert at_work.line() == ""
    at_work.told(said("a", 1, done=1.0, total=2.0, unit="epoch"))
    at_work.told(said("b", 2, done=1.0, total=2.0, unit="epoch"))
    assert at_work.line() == "round 2: b epoch 1/2"
    assert not at_work.told(Moment("update_received", "b", 2, {"kind": "train"}))
    assert at_work.line() == ""
    many = AtWork()
    for number in range(11):
        many.told(said(f"s{number}", 0, metrics={"x": 1.0, "y": 2.0, "z": 3.0}))
    assert many.line().startswith("train: s0 x 1, y 2; s1 x 1")
    assert many.line().endswith("; and 3 more")
    first = many.changed()
    assert first is not None
    assert (first[0], first[1].percent) == ("s0", 0.0)
