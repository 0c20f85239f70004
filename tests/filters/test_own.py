"""A site's own tensors stay there: over rounds, restarts, rounds done again, and a whole job."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prefect_federated import simulate
from prefect_federated.errors import ConfigurationError, FilterFailed
from prefect_federated.executors import Site
from prefect_federated.filters import Filters, FilterSpec, Passage, Point
from prefect_federated.messages import JsonValue, Message, Tensor, Tensors
from prefect_federated.model_file import map_model
from prefect_federated.tasks.server_filters import ServerFilters
from prefect_federated.transport.site_filters import SiteFilters
from tests.filters import batch_norm
from tests.filters.parts import rows

ENTRY: dict[str, JsonValue] = {"filter": "own", "names": ["bn.*"]}
SENT: Tensors = {"w": np.zeros(3), "bn.w": np.ones(2), "bn.steps": np.array(0)}
TRAIN_ONCE = """
import os, signal, sys
from pathlib import Path
from tests.filters.test_own import trained
trained(Path(sys.argv[1]), 1, 7.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def received(folder: Path, kind: str, round: int, sent: Tensors = SENT) -> dict[str, Tensor]:
    """Returns the model that an executor gets, from filters that have just been made."""
    passage = Passage(Point.ENTERING_SITE, "a", kind, round, folder)
    return dict(Filters.of([ENTRY]).run(passage.point, Message({}, sent), passage).tensors)


def trained(folder: Path, round: int, value: float, kind: str = "train") -> Message:
    """Returns what leaves a site whose executor has set every tensor to a value."""
    tensors = {name: np.full_like(each, value) for name, each in SENT.items()}
    passage = Passage(Point.LEAVING_SITE, "a", kind, round, folder, SENT)
    header: dict[str, JsonValue] = {"buffers": ["bn.steps"]}
    return Filters.of([ENTRY]).run(passage.point, Message(header, tensors, {"b": b"1"}), passage)


def own(model: Tensors) -> float:
    """Returns the one value of a model's own tensors."""
    values = {*model["bn.w"].reshape(-1).tolist(), *model["bn.steps"].reshape(-1).tolist()}
    assert len(values) == 1
    assert not model["w"].any()  # all else is the server's
    return float(values.pop())


def test_what_is_a_sites_own_does_not_leave_it_and_is_there_in_the_next_round(
    tmp_path: Path,
) -> None:
    assert received(tmp_path, "train", 1) == SENT  # the server's first ones
    sent = trained(tmp_path, 1, 5.0)
    assert list(sent.tensors) == ["w"]
    assert sent.blobs == {"b": b"1"}
    assert "buffers" not in sent.header
    assert rows(sent) == [["leaving_site", "own", 49, 25, {}]]
    assert own(received(tmp_path, "train", 2)) == 5
    got = received(tmp_path, "train", 2, sent={"w": SENT["w"]})  # the server need not send them
    assert own(got) == 5


def test_a_round_that_is_done_again_begins_with_what_was_there_before_it(tmp_path: Path) -> None:
    for round in (1, 2, 3, 4):
        trained(tmp_path, round, 10.0 * round)
    assert own(received(tmp_path, "train", 4)) == 30
    # The controller resumed from the snapshot before its newest: rounds 3 and 4 are undone.
    assert own(received(tmp_path, "train", 3)) == 20
    trained(tmp_path, 3, 33.0)
    assert own(received(tmp_path, "evaluate", 0)) == 33
    assert own(received(tmp_path, "train", 4)) == 33


def test_an_evaluation_sees_what_training_has_left_and_leaves_nothing(tmp_path: Path) -> None:
    trained(tmp_path, 1, 15)
    trained(tmp_path, 2, 25)
    assert own(received(tmp_path, "evaluate", 1)) == 15
    assert own(received(tmp_path, "evaluate", 2)) == 25
    assert own(received(tmp_path, "evaluate", 0)) == 25
    assert list(trained(tmp_path, 2, 9.0, kind="evaluate").tensors) == ["w"]
    assert own(received(tmp_path, "evaluate", 0)) == 25


def test_few_files_are_kept_and_those_from_before_the_rounds_that_may_be_done_again(
    tmp_path: Path,
) -> None:
    for round in (1, 4, 7, 9, 10):  # rounds for which the site was drawn
        trained(tmp_path, round, round)
    files = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert files == ["10.safetensors", "7.safetensors", "9.safetensors"]
    assert own(received(tmp_path, "train", 9)) == 7
    assert own(received(tmp_path, "train", 3)) == 10  # nothing so old is there


def test_outside_rounds_the_newest_counts(tmp_path: Path) -> None:
    trained(tmp_path, 0, 1.0)
    trained(tmp_path, 0, 2.0)
    assert own(received(tmp_path, "train", 0)) == 2
    trained(tmp_path, 3, 3.0)
    trained(tmp_path, 0, 4.0)
    assert own(received(tmp_path, "evaluate", 3)) == 4


def test_what_was_kept_survives_a_kill(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TRAIN_ONCE, tmp_path], check=False, timeout=60)
    assert done.returncode == -9
    assert own(received(tmp_path, "train", 2)) == 7


def test_a_damaged_file_fails_the_site_instead_of_giving_it_the_servers(tmp_path: Path) -> None:
    trained(tmp_path, 1, 1.0)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(FilterFailed, match=r"'own' at 'entering_site' .*round 2.*safetensors file"):
        received(tmp_path, "train", 2)


def test_two_entries_keep_their_tensors_apart(tmp_path: Path) -> None:
    filters = Filters.of([{"filter": "own", "names": [name]} for name in ("bn.w", "bn.s*")])
    leaving = Passage(Point.LEAVING_SITE, "a", "train", 1, tmp_path, SENT)
    update = {name: each + 3 for name, each in SENT.items()}
    assert list(filters.run(leaving.point, Message({}, update), leaving).tensors) == ["w"]
    entering = Passage(Point.ENTERING_SITE, "a", "train", 2, tmp_path)
    got = filters.run(entering.point, Message({}, SENT), entering).tensors
    assert (got["bn.w"].tolist(), got["bn.steps"].tolist()) == ([4, 4], 3)


def test_it_stands_nearest_to_the_executor_wherever_the_list_has_it(tmp_path: Path) -> None:
    entries: list[dict[str, JsonValue]] = [
        {"filter": "exclude", "at": "entering_site", "names": ["bn.steps"]},
        {"filter": "difference", "at": "leaving_site"},
        {"filter": "int8", "at": "leaving_site"},
        ENTRY,
    ]
    site = Site("a", tmp_path, tmp_path)
    header: dict[str, JsonValue] = {"id": "1", "kind": "train", "round": 1, "config": {}}
    for round, value in ((1, 2.0), (2, 3.0)):
        # As in a new process, from what has been sent to it.
        filters = SiteFilters([spec.to_json() for spec in map(FilterSpec.model_validate, entries)])
        task, visit = filters.entering(site, Message({**header, "round": round}, SENT))
        if round == 2:
            assert own(task.model) == 2  # what it had trained, not a difference
        update = {name: np.full_like(each, value) for name, each in SENT.items()}
        sent = filters.leaving(Message({"id": "1", "weight": 1.0}, update), visit)
        assert next(iter(sent.tensors)) == "w"
        assert not any(name.startswith("bn.") for name in sent.tensors)


def test_the_server_expects_an_update_without_them_and_passes_the_entry_on_once() -> None:
    spec = FilterSpec.model_validate(ENTRY)
    assert spec.points == (Point.LEAVING_SITE, Point.ENTERING_SITE)
    assert Filters.of([spec]).to_json() == [ENTRY]
    assert Filters.of([spec]).expected(SENT) == {"w": SENT["w"]}
    server = ServerFilters([spec])
    assert list(server.expected(Message({}, SENT), "train")) == ["w"]
    assert list(server.expected(Message({}, SENT), "initialize")) == list(SENT)
    server.note_sent("1.1", "train", Message({}, SENT), late=0.5)
    assert not server._references  # nothing of it is to be undone


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"filter": "own"}, "'own': the argument 'names' is missing"),
        ({"filter": "own", "names": []}, "'own': 'names'"),
        ({**ENTRY, "at": "leaving_site"}, "leaving_site and entering_site; leave out 'at'"),
        ({"filter": "cast", "to": "float16"}, "'cast': the argument 'at' is missing"),
        ({"filter": "tests.filters.parts:doubled"}, "the argument 'at' is missing"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(entry: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        FilterSpec.model_validate(entry)


def test_names_that_no_tensor_has_fail_instead_of_being_averaged_unseen(tmp_path: Path) -> None:
    filters = Filters.of([{"filter": "own", "names": ["norm.*"]}])
    passage = Passage(Point.LEAVING_SITE, "a", "train", 1, tmp_path, SENT)
    with pytest.raises(FilterFailed, match=r"named by \['norm\.\*'\]; it has w, bn\.w, bn\.steps"):
        filters.run(passage.point, Message({}, SENT), passage)


@pytest.mark.parametrize("point", [Point.ENTERING_SITE, Point.LEAVING_SITE])
def test_control_variates_cannot_be_a_sites_own(tmp_path: Path, point: Point) -> None:
    passage = Passage(point, "a", "scaffold", 1, tmp_path, SENT)
    message = Message({}, {**SENT, "control/bn.w": np.zeros(2)})
    with pytest.raises(FilterFailed, match="SCAFFOLD corrects every parameter"):
        Filters.of([ENTRY]).run(point, message, passage)


@pytest.mark.usefixtures("prefect_api")
def test_batch_norms_differ_by_site_and_the_servers_stay_as_they_were(tmp_path: Path) -> None:
    def run(folder: Path, filters: list[JsonValue]) -> dict[str, Tensor]:
        result = simulate(
            "fedavg",
            sites=2,
            threads=2,
            output=folder,
            parameters={
                "executor": "tests.filters.batch_norm", "rounds": 3, "filters": filters,
            },
        )  # fmt: skip
        received_bytes.append([
            int(str(row["bytes_received"])) for row in result.metrics if row["kind"] == "train"
        ])  # fmt: skip
        return dict(result.model)

    def noted(site: str, what: str) -> dict[str, Tensor]:
        (file,) = (tmp_path / "own").rglob(f"{site}/**/{what}.safetensors")
        return map_model(file)

    received_bytes: list[list[int]] = []
    model = run(tmp_path / "own", [{"filter": "own", "names": list(batch_norm.OWN)}])
    run(tmp_path / "plain", [])
    first = {name: each.numpy() for name, each in batch_norm.build().state_dict().items()}
    norms = [name for name in first if name.startswith("1.")]
    assert len(norms) == 5
    for name in norms:
        np.testing.assert_array_equal(model[name], first[name])
    assert not np.array_equal(model["0.weight"], first["0.weight"])
    for site in ("site-1", "site-2"):
        for name in norms:
            np.testing.assert_array_equal(noted(site, "got-1")[name], first[name])
            for round in (2, 3):
                own = noted(site, f"trained-{round - 1}")[name]
                np.testing.assert_array_equal(noted(site, f"got-{round}")[name], own)
            last = noted(site, "trained-3")[name]
            np.testing.assert_array_equal(noted(site, "evaluated-0")[name], last)
        np.testing.assert_array_equal(noted(site, "evaluated-0")["0.weight"], model["0.weight"])
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert not np.array_equal(noted("site-1", "got-3")[name], noted("site-2", "got-3")[name])
    norm_bytes = 2 * sum(first[name].nbytes for name in norms)
    for with_own, without in zip(*received_bytes, strict=True):
        assert without - with_own >= norm_bytes  # and the names, less a row about the filter
