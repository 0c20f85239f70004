"""Which filters a job has, in which order, and what becomes of those that fail."""

import json

import numpy as np
import pytest
from pydantic import BaseModel

from prefect_federated.errors import (
    ConfigurationError,
    FilterFailed,
    JobError,
    UpdateRejected,
)
from prefect_federated.filters import (
    SERVER_POINTS,
    Filters,
    FilterSpec,
    Passage,
    Point,
    rows_of,
)
from prefect_federated.messages import JsonValue, Message
from tests.filters.parts import doubled, leaving_site, normal, rows

HERE = "tests.filters.parts"


class Job(BaseModel):
    filters: list[FilterSpec] = []


def test_filters_run_in_the_order_of_the_list_and_each_says_what_it_did() -> None:
    filters = Filters.of(
        [
            {"filter": f"{HERE}:doubled", "at": "leaving_site"},
            {"filter": "exclude", "at": "entering_site", "names": ["w"]},
            {"filter": f"{HERE}:Times", "at": "leaving_site", "factor": 0.5},
            {"filter": "clip", "at": "leaving_site", "max_norm": 5},
            {"filter": "exclude", "at": "leaving_site", "names": ["v"]},
            {"filter": "cast", "at": "leaving_site", "to": "float16"},
        ]
    )
    message = Message({"id": "t1"}, {"w": np.array([3.0, 4.0]), "v": np.array([np.sqrt(75.0)])})
    sent = filters.run(Point.LEAVING_SITE, message, leaving_site())
    assert rows(sent) == [
        ["leaving_site", f"{HERE}:doubled", 24, 24, {}],
        ["leaving_site", f"{HERE}:Times", 24, 24, {}],
        ["leaving_site", "clip", 24, 24, {"norm": pytest.approx(10)}],
        ["leaving_site", "exclude", 24, 16, {}],
        ["leaving_site", "cast", 16, 4, {}],
    ]
    np.testing.assert_allclose(sent.tensors["w"], [1.5, 2.0])
    assert sent.header["id"] == "t1"
    assert message.header == {"id": "t1"}


def test_rows_are_added_to_those_of_the_points_before() -> None:
    filters = Filters.of(
        [
            {"filter": f"{HERE}:doubled", "at": "leaving_server"},
            {"filter": f"{HERE}:doubled", "at": "entering_site"},
        ]
    )
    message = filters.run(
        Point.LEAVING_SERVER, Message({}, {"w": np.ones(1)}), Passage(Point.LEAVING_SERVER)
    )
    message = filters.run(Point.ENTERING_SITE, message, Passage(Point.ENTERING_SITE))
    assert [row.point for row in rows_of(message.header)] == ["leaving_server", "entering_site"]
    assert message.tensors["w"] == 4


def test_a_point_without_filters_costs_nothing() -> None:
    message = Message({}, {"w": np.ones(1)})
    assert Filters.of([]).run(Point.LEAVING_SITE, message, leaving_site()) is message


def test_the_list_goes_to_the_sites_as_json_and_comes_back_the_same() -> None:
    specs: list[JsonValue] = [
        {"filter": "exclude", "at": "leaving_site", "kinds": ["train"], "names": ["head.*"]},
        {"filter": "top_k", "at": "leaving_site", "fraction": 0.01},
        {"filter": f"{HERE}:Times", "at": "entering_site", "factor": 2.0},
    ]
    job = Job.model_validate({"filters": specs})
    sent = json.loads(json.dumps(Filters.of(job.filters).to_json()))
    assert sent == specs
    assert Filters.of(sent).to_json() == specs
    assert Job.model_validate(job.model_dump(mode="json")) == job
    assert Job.model_json_schema()["$defs"]["FilterSpec"]["additionalProperties"] is True


def test_import_paths_lead_to_filters_classes_and_makers() -> None:
    message = Message({}, {"w": np.ones(1)})
    entries: list[tuple[dict[str, object], float]] = [
        ({"filter": f"{HERE}:doubled"}, 2),
        ({"filter": f"{HERE}:Times", "factor": 5}, 5),
        ({"filter": f"{HERE}:maker"}, 2),
        ({"filter": f"{HERE}:maker", "exponent": 3}, 8),
    ]
    for entry, expected in entries:
        filters = Filters.of([{"at": "leaving_site", **entry}])
        assert filters.run(Point.LEAVING_SITE, message, leaving_site()).tensors["w"] == expected


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"filter": "casst", "at": "leaving_site"}, r"'casst'.*no such filter.*'package"),
        ({"filter": "a b:c", "at": "leaving_site"}, "no such filter"),
        ({"filter": "cast", "at": "leaving_site", "to": "int4"}, "'cast': 'to' is 'int4'"),
        ({"filter": "cast", "at": "leaving_site"}, "'cast': the argument 'to' is missing"),
        ({"filter": "int8", "at": "leaving_site", "blok": 3}, "'int8' has no argument 'blok'"),
        ({"filter": "int8", "at": "leaving_site", "block": 3}, "'int8': 'block' is '3'.*16"),
        ({"filter": "clip", "at": "leaving_site", "max_norm": -1}, "'clip': 'max_norm' is '-1'"),
        ({"filter": "clip", "at": "leaving_site", "max_norm": np.inf}, "'max_norm' is 'inf'"),
        ({"filter": "top_k", "at": "leaving_site"}, "'top_k': give either `fraction` or `count`"),
        ({"filter": "exclude", "at": "leaving_site", "names": []}, "'exclude': 'names' is"),
        ({"filter": "int8", "at": "entering_site"}, "'int8' cannot stand at 'entering_site'"),
        ({"filter": "difference", "at": "leaving_server"}, "may stand at leaving_site"),
        ({"filter": "cast", "at": "door", "to": "float16"}, "'cast': 'at' is 'door'.*leaving_se"),
        ({"filter": "cast", "to": "float16"}, "'cast': the argument 'at' is missing"),
        ({"at": "leaving_site"}, "an entry of the filters is {'at': 'leaving_site'}"),
        (3, "an entry of the filters is 3; it must be an object"),
    ],
)
def test_a_wrong_entry_is_told_by_filter_and_argument(entry: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        FilterSpec.model_validate(entry)
    with pytest.raises(ConfigurationError, match=said):
        Job.model_validate({"filters": [entry]})


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"filter": "no.such.module:name"}, "`import no.such.module` failed.*--code"),
        ({"filter": f"{HERE}:nothing"}, "has no 'nothing'"),
        ({"filter": f"{HERE}:unmarked"}, "not marked with @message_filter"),
        ({"filter": "os:system", "command": "true"}, "not marked with @message_filter"),
        ({"filter": f"{HERE}:Times"}, "missing 1 required positional argument: 'factor'"),
        ({"filter": f"{HERE}:Times", "factor": 0}, "with factor: ValueError: a factor of 0"),
        ({"filter": f"{HERE}:Times", "speed": 0}, "with speed: TypeError"),
        ({"filter": f"{HERE}:makes_nothing"}, "made a int; it must make a callable"),
    ],
)
def test_an_import_path_that_leads_to_no_filter_is_told(
    entry: dict[str, object], said: str
) -> None:
    spec = FilterSpec.model_validate({"at": "leaving_site", **entry})
    with pytest.raises(ConfigurationError, match=said):
        Filters.of([spec])
    assert Filters.of([spec], points=SERVER_POINTS).to_json() == [spec.to_json()]


def test_a_filter_of_another_process_is_not_run_here() -> None:
    spec = {"filter": "no.such.module:name", "at": "leaving_site"}
    filters = Filters.of([spec], points=SERVER_POINTS)
    with pytest.raises(ConfigurationError, match="is not passed here"):
        filters.run(Point.LEAVING_SITE, Message({}), leaving_site())


def test_an_encoding_is_the_last_of_its_point() -> None:
    cast: dict[str, object] = {"filter": "cast", "at": "leaving_site", "to": "float16"}
    exclude: dict[str, object] = {"filter": "exclude", "at": "leaving_site", "names": ["w"]}
    with pytest.raises(ConfigurationError, match="'exclude' stands after 'cast' at 'leaving_site'"):
        Filters.of([cast, exclude])
    both = Filters.of([cast]).then(Filters.of([exclude]))
    message = Message({}, {"w": np.ones(4, "f4"), "v": np.ones(4, "f4")})
    sent = both.run(Point.LEAVING_SITE, message, leaving_site())
    assert [row.name for row in rows_of(sent.header)] == ["exclude", "cast"]


def test_plain_functions_stand_before_the_encodings_and_are_not_sent() -> None:
    cast: dict[str, object] = {"filter": "cast", "at": "leaving_site", "to": "float16"}
    filters = Filters.of([cast], {Point.LEAVING_SITE: [doubled]})
    sent = filters.run(Point.LEAVING_SITE, Message({}, {"w": np.ones(4, "f4")}), leaving_site())
    assert [row.name for row in rows_of(sent.header)] == ["doubled", "cast"]
    with pytest.raises(ConfigurationError, match="'doubled' at 'leaving_site' is a plain function"):
        filters.to_json()
    at_server = Filters.of([cast], {Point.ENTERING_SERVER: [doubled]})
    assert at_server.to_json() == [cast]


def test_a_filter_that_raises_or_gives_no_message_fails_by_its_name_and_point() -> None:
    def broken(message: Message, passage: Passage) -> Message:
        raise KeyError("fc.weight")

    def silent(message: Message, passage: Passage) -> Message:
        return None  # type: ignore[return-value]

    for filter, said in [(broken, "KeyError: 'fc.weight'"), (silent, "gave a NoneType")]:
        for point in Point:
            filters = Filters.of(functions={point: [filter]})
            error = UpdateRejected if point is Point.ENTERING_SERVER else FilterFailed
            with pytest.raises(error, match=f"{filter.__name__}' at '{point.value}'.*{said}"):
                filters.run(point, Message({}), Passage(point, "clinic-a", round=3))
    assert issubclass(FilterFailed, JobError)


def test_the_report_believes_only_rows_that_are_rows() -> None:
    good: list[JsonValue] = ["leaving_site", "cast", 8, 4, {"norm": 1.5, "text": "x", "big": 1e308}]
    bad: list[JsonValue] = [
        3,
        ["leaving_site", "cast", 8],
        ["leaving_site", "cast", True, 4, {}],
        ["leaving_site", "cast", -1, 4, {}],
        ["leaving_site", "cast", 8, 4, None],
    ]
    found = rows_of({"filtered": [*bad, good]})
    assert found == [("leaving_site", "cast", 8, 4, {"norm": 1.5})]
    assert rows_of({"filtered": "many"}) == []
    assert rows_of({}) == []
    assert len(rows_of({"filtered": [good] * 1000})) == 64
    long = rows_of({"filtered": [["x" * 999, "y" * 999, 1, 1, {}]]})
    assert (len(long[0].point), len(long[0].name)) == (200, 200)


def test_a_filter_learns_where_it_stands_and_what_it_notes_is_reported() -> None:
    met: list[Passage] = []

    def looks(message: Message, passage: Passage) -> Message:
        met.append(passage)
        passage.note(round=passage.round)
        return message

    filters = Filters.of(
        [{"filter": "difference", "at": "leaving_site"}], {Point.ENTERING_SERVER: [looks]}
    )
    message = Message({}, {"w": normal(3)})
    got = filters.run(Point.ENTERING_SERVER, message, Passage(Point.ENTERING_SITE, "a", round=7))
    assert (met[0].point, met[0].site, met[0].is_difference) == (Point.ENTERING_SERVER, "a", True)
    assert rows_of(got.header)[0].notes == {"round": 7}
