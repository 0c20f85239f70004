"""What sites agree on, and how errors name who differs."""

import re

import pytest

from prefect_federated.errors import SitesDisagree
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.schema import Feature, Label, SiteColumns, agree

QUESTION = TabularQuestion(dataset="people", label="sick", objective="binary")
AGE = Feature(name="age", kind="numeric")


def site(
    *features: Feature, classes: tuple[str | float, ...] = ("no", "yes"), **more: object
) -> SiteColumns:
    label = Label(kind="categorical", classes=classes)
    return SiteColumns.model_validate(
        {"features": features or (AGE,), "label": label, "train_rows": 50, **more}
    )


def refused(columns: dict[str, SiteColumns], question: TabularQuestion = QUESTION) -> str:
    with pytest.raises(SitesDisagree) as failed:
        agree(columns, question)
    return re.sub(r"^.* together: ", "", str(failed.value))


def test_a_missing_column_names_who_has_it() -> None:
    chol = Feature(name="chol", kind="numeric")
    columns = {"site-1": site(AGE, chol), "site-2": site(AGE, chol), "site-3": site(AGE)}
    assert refused(columns) == (
        "site-3 has no column 'chol' that may be used; site-1, site-2 have it. Add it there, or "
        "name `features` without it."
    )
    asked = QUESTION.model_copy(update={"features": ("age",)})
    assert agree(columns, asked).names == ("age",)


def test_kinds_that_differ_name_both_sides() -> None:
    text = Feature(name="age", kind="categorical", categories=("old", "young"))
    assert "column 'age' holds text at site-2 and numbers at site-1" in refused(
        {"site-1": site(), "site-2": site(text)}
    )
    boolean, empty = Feature(name="age", kind="boolean"), Feature(name="age", kind="empty")
    columns = {"site-1": site(), "site-2": site(boolean), "site-3": site(empty)}
    assert agree(columns, QUESTION).features == (AGE,)


def test_versions_that_differ_are_named() -> None:
    columns = {
        name: site(versions={"xgboost": "3.1.0" if name == "site-2" else "3.2.0"})
        for name in ("site-1", "site-2", "site-3")
    }
    assert refused(columns) == (
        "xgboost differs: 3.1.0 at site-2, 3.2.0 at site-1, site-3. Install the same version at "
        "all sites."
    )


def test_classes_come_from_all_sites_and_a_third_one_is_named() -> None:
    columns = {"site-1": site(classes=("no",)), "site-2": site(classes=("yes",))}
    assert agree(columns, QUESTION).classes == ("no", "yes")
    columns["site-3"] = site(classes=("no", "perhaps"))
    assert refused(columns) == (
        "the label 'sick' has 3 values where objective 'binary' takes two: site-1 has 'no'; "
        "site-2 has 'yes'; site-3 has 'no', 'perhaps'. Name a label of two values; the objective "
        "for several is 'multiclass'."
    )
    assert "fewer than two values" in refused(
        {"site-1": site(classes=(1.0,))}, QUESTION.model_copy(update={"objective": "multiclass"})
    )
    assert "text at some sites and a number at others" in refused(
        {"site-1": site(classes=(1.0, 0.0)), "site-2": site()}
    )


def test_problems_of_all_sites_are_told_at_once() -> None:
    columns = {
        "site-1": site(problems=("11 rows to train on < minimum 20",)),
        "site-2": site(problems=("the label 'sick' has infinite values",)),
    }
    told = refused(columns)
    assert "site-1: 11 rows to train on < minimum 20" in told
    assert "site-2: the label" in told


def test_with_a_key_each_column_and_the_label_are_at_one_site() -> None:
    question = QUESTION.model_copy(update={"key": "number"})
    other = SiteColumns(features=(Feature(name="weight", kind="numeric"),), train_rows=50)
    assert agree({"site-1": site(), "site-2": other}, question).names == ("age", "weight")
    assert "site-1, site-2 have column 'age'; with a key" in refused(
        {"site-1": site(), "site-2": SiteColumns(features=(AGE,))}, question
    )
    assert "with a key, it is at one site" in refused(
        {"site-1": site(), "site-2": site(Feature(name="weight", kind="numeric"))}, question
    )
    assert "no site has the label" in refused({"site-1": other}, question)
    no_key = {"features": (AGE,), "problems": ("there is no column 'nmber'",)}
    columns = {name: SiteColumns.model_validate(no_key) for name in ("site-1", "site-2")}
    assert refused(columns, question) == (  # not that both have the column that is their key
        "site-1, site-2: there is no column 'nmber'."
    )


def test_a_site_that_its_policy_keeps_out_is_not_said_to_lack_columns() -> None:
    out = SiteColumns(problems=("11 rows to train on < minimum 20",))
    for columns, who in (
        ({"site-1": site(), "site-2": out}, "site-2"),
        ({"site-3": out}, "site-3"),
    ):
        assert refused(columns, QUESTION) == f"{who}: 11 rows to train on < minimum 20."
