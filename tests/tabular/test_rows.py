"""What a site says of its rows, and the rows that it trains on."""

import numpy as np
import pandas as pd
import pytest

from prefect_federated.errors import ConfigurationError, DatasetNotFound, SitesDisagree
from prefect_federated.executors import Site
from prefect_federated.tabular.access import allows_raw_rows
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.rows import columns_in, describe, load_rows
from prefect_federated.tabular.schema import Schema, SiteColumns, agree
from tests.tabular.conftest import OPEN, MakeSite, asking

BINARY = TabularQuestion(dataset="people", label="sick", objective="binary", test_share=0.25)


def people(rows: int = 40, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": random.normal(60, 10, rows).round(2),
            "town": random.choice(["Bern", "Chur", "Genf"], rows),
            "sick": random.choice(["no", "yes"], rows),
        }
    )


def said(site: Site, question: TabularQuestion = BINARY) -> SiteColumns:
    return columns_in(describe(asking(site, question)))


def schema_of(*sites: Site, question: TabularQuestion = BINARY) -> Schema:
    return agree({site.name: said(site, question) for site in sites}, question)


def test_sites_agree_on_columns_categories_and_classes(make_site: MakeSite) -> None:
    one, other = people(), people(seed=1)
    other = other[other["town"] != "Chur"]
    schema = schema_of(make_site(one), make_site(other, "site-2"))
    assert schema.names == ("age", "town")
    assert schema.features[1].categories == ("Bern", "Chur", "Genf")
    assert schema.classes == ("no", "yes")


def test_rows_have_the_schemas_columns_and_numbers_of_classes(make_site: MakeSite) -> None:
    made = people()
    made.loc[3, "age"] = np.nan
    made.loc[4, "sick"] = None
    site = make_site(made)
    schema = schema_of(site)
    rows = load_rows(asking(site, BINARY, schema))
    labelled = made[made["sick"].notna()]
    assert rows.train.rows + rows.test.rows == 39
    assert rows.test.rows == 10
    together = pd.concat([rows.train.features, rows.test.features])
    assert sorted(together["age"].dropna()) == sorted(labelled["age"].dropna())
    assert list(together["town"].cat.categories) == ["Bern", "Chur", "Genf"]
    labels = np.concatenate([rows.train.label, rows.test.label])
    assert labels.sum() == (labelled["sick"] == "yes").sum()
    assert said(site).train_rows == rows.train.rows
    assert said(site).test_rows == rows.test.rows


def test_the_same_rows_are_held_out_in_each_round_and_others_with_another_seed(
    make_site: MakeSite,
) -> None:
    site = make_site(people())
    schema = schema_of(site)
    first = load_rows(asking(site, BINARY, schema))
    assert load_rows(asking(site, BINARY, schema)) is first  # read once
    other = BINARY.model_copy(update={"seed": 1})
    assert not load_rows(asking(site, other, schema)).test.features.equals(first.test.features)


def test_splits_are_taken_by_their_names(make_site: MakeSite) -> None:
    site = make_site({"train": people(30), "test": people(10, 1), "later": people(5, 2)})
    schema = schema_of(site)
    rows = load_rows(asking(site, BINARY, schema))
    assert (rows.train.rows, rows.test.rows) == (30, 10)
    wrong = BINARY.model_copy(update={"test": "tset"})
    with pytest.raises(DatasetNotFound, match=r"no split 'tset'\. Did you mean 'test'"):
        said(site, wrong)
    nameless = make_site({"a": people(30), "b": people(10, 1)}, "site-2")
    with pytest.raises(DatasetNotFound, match=r"no split 'train', but a, b.*`train_split`"):
        said(nameless)


def test_a_category_or_class_in_few_rows_is_not_named_and_counts_as_missing(
    make_site: MakeSite,
) -> None:
    made = people(60)
    made.loc[:2, "town"] = "Hapsburg"
    made.loc[5:7, "sick"] = "perhaps"
    site = make_site(made, privacy="{small_cell: 5}")
    found = said(site)
    assert found.features[1].categories == ("Bern", "Chur", "Genf")
    assert found.label is not None
    assert found.label.classes == ("no", "yes")
    assert "Hapsburg" not in found.model_dump_json()
    assert "perhaps" not in found.model_dump_json()
    schema = schema_of(site)
    rows = load_rows(asking(site, BINARY, schema))
    assert rows.train.rows + rows.test.rows == 57
    both = pd.concat([rows.train.features, rows.test.features])
    assert both["town"].isna().sum() == 3


def test_a_column_that_may_name_persons_is_left_out_with_a_note(make_site: MakeSite) -> None:
    made = people().assign(name=[f"person {n}" for n in range(40)])
    site = make_site(made, privacy="{}")
    schema = schema_of(site)
    assert "name" not in schema.names
    assert "person 1" not in said(site).model_dump_json()
    assert any("'name' is left out" in note for note in schema.notes)


def test_numbers_as_classes_keep_their_order(make_site: MakeSite) -> None:
    made = people().assign(sick=np.arange(40) % 3)
    question = BINARY.model_copy(update={"objective": "multiclass"})
    site = make_site(made)
    schema = schema_of(site, question=question)
    assert schema.classes == (0.0, 1.0, 2.0)
    assert set(load_rows(asking(site, question, schema)).train.label) == {0.0, 1.0, 2.0}


def test_a_policy_keeps_a_site_out(make_site: MakeSite) -> None:
    small = make_site(people(20), privacy="{minimum_rows: 20}")
    assert said(small).problems == (
        "15 rows to train on < minimum 20 of the site's policy; leave the site out with `sites`, "
        "or bring more rows",
    )
    assert said(small).features == ()
    noisy = make_site(people(), "site-2", privacy="{minimum_rows: 1, noise: {epsilon: 1}}")
    assert "`training: true`" in said(noisy).problems[0]
    never = make_site(people(), "site-3", privacy="{minimum_rows: 1, training: false}")
    assert "`training: false`" in said(never).problems[0]
    schema = schema_of(make_site(people(), "site-4"))
    for site in (small, noisy, never):
        with pytest.raises(ConfigurationError, match=f"{site.name} takes no part"):
            load_rows(asking(site, BINARY, schema))
    let = "{minimum_rows: 1, noise: {epsilon: 1}, training: true}"
    assert not said(make_site(people(), "site-5", privacy=let)).problems


@pytest.mark.parametrize("rule", ["minimum_rows: 50", "minimum_rows: 1, training: false"])
def test_a_site_that_is_kept_out_tells_nothing_of_its_labels_values(
    make_site: MakeSite, rule: str
) -> None:
    made = people().assign(sick=[-1, 2] * 20)
    question = TabularQuestion.model_validate({**BINARY.model_dump(), "objective": "poisson"})
    told = said(make_site(made, privacy=f"{{{rule}}}"), question).problems
    assert len(told) == 1
    assert "below 0" not in told[0]
    assert "minimum 50" in told[0] or "training: false" in told[0]


def test_raw_rows_leave_only_where_the_site_says_so(make_site: MakeSite) -> None:
    question = asking(make_site(people()), BINARY)
    assert not allows_raw_rows(question)
    allowed = make_site(people(), "site-2", privacy=OPEN.replace("}", ", raw_rows: true}"))
    assert allows_raw_rows(asking(allowed, BINARY))
    stricter = make_site(
        people(),
        "site-3",
        OPEN.replace("}", ", raw_rows: true}"),
        "    privacy: {raw_rows: false}\n",
    )
    assert not allows_raw_rows(asking(stricter, BINARY))


@pytest.mark.parametrize(
    ("values", "objective", "expected"),
    [
        (["a", "b"], "regression", "holds text"),
        ([1.5, 2], "poisson", "has fractions"),
        ([-1, 2], "poisson", "below 0"),
        ([None, None], "regression", "has no value in any row"),
        ([np.inf, 1.0], "regression", "infinite"),
    ],
)
def test_a_label_outside_the_objective_is_told(
    make_site: MakeSite, values: list[object], objective: str, expected: str
) -> None:
    made = people().assign(sick=pd.Series(values * 20))
    question = TabularQuestion.model_validate({**BINARY.model_dump(), "objective": objective})
    site = make_site(made)
    with pytest.raises(SitesDisagree, match=f"site-1: the label 'sick' .*{expected}"):
        schema_of(site, question=question)


def test_infinite_values_keep_a_column_out(make_site: MakeSite) -> None:
    made = people()
    made.loc[0, "age"] = np.inf
    schema = schema_of(make_site(made))
    assert schema.names == ("town",)
    asked = BINARY.model_copy(update={"features": ("age", "town")})
    with pytest.raises(SitesDisagree, match="site-2: column 'age' cannot be used, 1 of its values"):
        schema_of(make_site(made, "site-2"), question=asked)


def test_rows_with_a_key_are_held_out_alike_at_all_sites(make_site: MakeSite) -> None:
    left = people(200).assign(number=np.arange(200))
    right = left[["number"]].assign(weight=1.5).sample(frac=1, random_state=3)
    question = BINARY.model_copy(update={"key": "number"})
    sites = [make_site(left), make_site(right, "site-2")]
    schema = schema_of(*sites, question=question)
    assert set(schema.names) == {"age", "town", "weight"}
    one, other = (load_rows(asking(site, question, schema)) for site in sites)
    assert one.test.key is not None
    assert other.test.key is not None
    assert set(one.test.key) == set(other.test.key)
    assert 30 < len(one.test.key) < 70
    assert len(other.train.label) == 0
    assert list(other.train.features.columns) == ["weight"]
