"""Linear models in the simulator, against statsmodels and scikit-learn on the pooled rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from sklearn.linear_model import ElasticNet

from prefect_federated import load_fitted, simulate
from prefect_federated.errors import ModelUndetermined
from prefect_federated.flows.linear import linear
from prefect_federated.linear.inference import Coefficient
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.linear import LinearJob, LinearRef
from prefect_federated.tasks.simulated import Simulation, simulating
from tests.flows.tables import documented, read_all, write_sites

pytestmark = pytest.mark.usefixtures("prefect_api")

EXACT = 1e-8  # relative
SITES = ["east", "north", "west"]


def rows_of(count: int, seed: int) -> pd.DataFrame:
    """Columns in unlike units, a category, missing values, and labels of each family."""
    random = np.random.default_rng(seed)
    age = random.normal(60 + seed, 9, count)
    dose = random.normal(0.002, 0.0005, count)
    ward = random.choice(["a", "b", "c"], count, p=[0.5, 0.3, 0.2])
    score = 0.05 * (age - 60) + 900 * (dose - 0.002) + np.where(ward == "b", 0.8, 0)
    sick = random.random(count) < 1 / (1 + np.exp(-score))
    frame = pd.DataFrame(
        {
            "age": age,
            "dose": dose,
            "ward": ward,
            "stay": 12 + 3 * score + random.normal(0, 2, count),
            "sick": np.where(sick, "yes", "no"),
            "visits": random.poisson(np.exp(0.5 * score + 1)),
            "grade": np.digitize(score + random.logistic(size=count), [-0.7, 0.7]),
        }
    )
    frame["grade"] = frame["grade"].map({0: "low", 1: "middle", 2: "top"})
    frame.loc[random.random(count) < 0.1, "dose"] = np.nan
    return frame


def loaded(reference: LinearRef) -> Any:
    return load_fitted(reference.path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    counts = zip(SITES, [150, 90, 60], strict=True)
    sites = {name: rows_of(count, seed) for seed, (name, count) in enumerate(counts)}
    return write_sites(tmp_path / "sites", sites)


def run(data: Path, label: str, **more: JsonValue) -> LinearRef:
    parameters: dict[str, JsonValue] = {
        "dataset": "made", "label": label, "features": ["age", "dose", "ward"], **more
    }  # fmt: skip
    result = simulate(linear, data=data, parameters=parameters)
    assert isinstance(result.returned, LinearRef)
    return result.returned


def pooled(data: Path, sites: list[str] | None = None) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Returns the pooled design, imputed by the mean, with the first category left out."""
    rows = read_all(data, "train", sites)
    dose = rows["dose"].fillna(rows["dose"].mean())
    return design_of(rows, dose), rows


def design_of(rows: pd.DataFrame, dose: "pd.Series[float]") -> NDArray[np.float64]:
    ward = rows["ward"].to_numpy()
    columns = [
        np.ones(len(rows)),
        rows["age"].to_numpy(),
        dose.to_numpy(),
        ward == "b",
        ward == "c",
    ]
    return np.column_stack([np.asarray(column, np.float64) for column in columns])


def compared(found: list[Coefficient], reference: object) -> None:
    for mine, theirs in [
        ("value", "params"), ("standard_error", "bse"), ("statistic", "tvalues"),
        ("p_value", "pvalues"),
    ]:  # fmt: skip
        values = np.array([getattr(row, mine) for row in found], float)
        np.testing.assert_allclose(values, np.ravel(getattr(reference, theirs), "F"), rtol=EXACT)


def test_least_squares_is_statsmodels_on_pooled_rows_in_one_round(data: Path) -> None:
    reference = run(data, "stay")
    design, rows = pooled(data)
    known = sm.OLS(rows["stay"], design).fit()
    compared(reference.coefficients, known)
    assert reference.rounds == 1
    assert reference.rows == len(rows)
    assert reference.r2 == pytest.approx(known.rsquared, rel=EXACT)
    kinds = [row["kind"] for row in reference.history]
    assert kinds.count("gram") == 1
    assert "newton" not in kinds

    model = loaded(reference)
    tests = read_all(data, "test")
    assert type(model[-1]).__name__ == "LinearRegression"
    ours = model.predict(tests[["age", "dose", "ward"]])
    dose = tests["dose"].fillna(rows["dose"].mean())
    np.testing.assert_allclose(ours, known.predict(design_of(tests, dose)), rtol=EXACT)
    card = (Path(reference.path) / "card.md").read_text()
    assert "products of the encoded columns" in card
    assert "| age | " in card


def test_logistic_regression_is_statsmodels_on_pooled_rows(data: Path) -> None:
    reference = run(data, "sick", family="logistic")
    design, rows = pooled(data)
    scale = np.abs(design).max(axis=0)  # else statsmodels' own steps lose digits
    known = sm.GLM(rows["sick"] == "yes", design / scale, family=sm.families.Binomial())
    fit = known.fit(tol=1e-15, maxiter=50)
    found = np.array([row.value for row in reference.coefficients])
    np.testing.assert_allclose(found, fit.params / scale, rtol=EXACT)
    errors = np.array([row.standard_error for row in reference.coefficients], float)
    np.testing.assert_allclose(errors, fit.bse / scale, rtol=EXACT)
    assert reference.rounds < 10
    model = loaded(reference)
    assert set(model.predict(read_all(data, "test")[["age", "dose", "ward"]])) == {"yes", "no"}
    assert 0 < reference.metrics["auc"] <= 1


def test_poisson_and_multinomial_regression_are_statsmodels_on_pooled_rows(data: Path) -> None:
    design, rows = pooled(data)
    scale = np.abs(design).max(axis=0)
    poisson = run(data, "visits", family="poisson", compare_alone=False)
    known = sm.GLM(rows["visits"], design / scale, family=sm.families.Poisson())
    fit = known.fit(tol=1e-15, maxiter=50)
    found = np.array([row.value for row in poisson.coefficients])
    np.testing.assert_allclose(found, fit.params / scale, rtol=EXACT)
    assert poisson.rounds < 10

    grades = run(data, "grade", family="multinomial")
    numbers = rows["grade"].map({"low": 0, "middle": 1, "top": 2})
    fit = sm.MNLogit(numbers.to_numpy(), design / scale).fit(
        disp=0, method="newton", tol=1e-12, maxiter=60
    )
    found = np.array([row.value for row in grades.coefficients])
    np.testing.assert_allclose(found, np.ravel(np.asarray(fit.params).T / scale), rtol=EXACT)
    assert {row.label_class for row in grades.coefficients} == {"middle", "top"}
    assert grades.rounds < 10


def test_an_elastic_net_is_scikit_learns_on_pooled_rows(data: Path) -> None:
    reference = run(data, "stay", family="elastic_net", alpha=0.5, compare_alone=False)
    net = loaded(reference)[-1]
    design, rows = pooled(data)
    for place, name in ((1, "age"), (2, "dose")):  # scaled by the values that are there
        design[:, place] = (design[:, place] - rows[name].mean()) / rows[name].std(ddof=0)
    known = ElasticNet(alpha=0.5, tol=1e-14).fit(design[:, 1:], rows["stay"])
    np.testing.assert_allclose(net.coef_, known.coef_, rtol=1e-6)
    assert (type(net).__name__, net.alpha, net.l1_ratio) == ("ElasticNet", 0.5, 0.5)
    assert reference.rounds == 1


def test_a_site_that_is_away_is_left_out(data: Path) -> None:
    reference = run(data, "stay", sites=["east", "north"], compare_alone=False)
    design, rows = pooled(data, ["east", "north"])
    compared(reference.coefficients, sm.OLS(rows["stay"], design).fit())


def test_a_job_resumes_in_the_middle_of_newtons_rounds(data: Path, tmp_path: Path) -> None:
    whole = run(data, "sick", family="logistic", compare_alone=False)
    retried = linear.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(tuple(SITES), 2, data, tmp_path)):
        reference = retried(
            dataset="made", label="sick", features=["age", "dose", "ward"], family="logistic",
            executor="tests.flows.linear_executors", quorum=1.0, config={"fails_once_in": 3},
            compare_alone=False,
        )  # fmt: skip
    assert all((data / site / "has-failed").exists() for site in SITES)
    assert [row.value for row in reference.coefficients] == [
        row.value for row in whole.coefficients
    ]
    done = [row["round"] for row in reference.history if row["kind"] == "newton"]
    assert done == list(range(1, reference.rounds + 1))


def test_a_site_with_one_class_takes_part(data: Path) -> None:
    for split in ("train", "test"):
        file = data / "west" / f"{split}.csv"
        pd.read_csv(file).assign(sick="yes").to_csv(file, index=False)
    reference = run(data, "sick", family="logistic")
    design, rows = pooled(data)
    scale = np.abs(design).max(axis=0)
    known = sm.GLM(rows["sick"] == "yes", design / scale, family=sm.families.Binomial())
    found = np.array([row.value for row in reference.coefficients])
    np.testing.assert_allclose(found, known.fit(tol=1e-15).params / scale, rtol=EXACT)


def test_sites_that_disagree_on_features_are_named(data: Path) -> None:
    for split in ("train", "test"):
        file = data / "north" / f"{split}.csv"
        pd.read_csv(file).rename(columns={"dose": "dosis"}).to_csv(file, index=False)
    with pytest.raises(Exception, match=r"north.*dose"):
        run(data, "stay")


def test_constant_and_collinear_columns_are_named(data: Path) -> None:
    for site in SITES:
        for split in ("train", "test"):
            file = data / site / f"{split}.csv"
            rows = pd.read_csv(file)
            rows.assign(twice=2 * rows["age"] + 1, same=3.5).to_csv(file, index=False)
    with pytest.raises(ModelUndetermined) as caught:
        run(data, "stay", features=["age", "twice", "same"])
    assert "'twice' follows from 'age'; 'same' has the same value in all rows" in str(caught.value)
    ridge = run(data, "stay", features=["age", "twice", "same"], family="ridge", alpha=2)
    assert (type(loaded(ridge)[-1]).__name__, loaded(ridge)[-1].alpha) == ("Ridge", 2)
    assert ridge.coefficients[-1].value == 0
    assert ridge.coefficients[-1].standard_error is None


def test_a_site_with_too_few_rows_for_its_columns_sends_no_sums(data: Path) -> None:
    random = np.random.default_rng(0)
    for site, count in zip(SITES, (150, 90, 30), strict=True):
        wide = pd.DataFrame(random.normal(size=(count, 15))).add_prefix("x")
        wide["y"] = random.normal(size=count)
        for split, part in (("train", wide[: count - 5]), ("test", wide[count - 5 :])):
            part.to_csv(data / site / f"{split}.csv", index=False)
    with pytest.raises(Exception, match="sums of fewer than 32 rows could give them away"):
        run(data, "y", features=None, quorum=1.0)


def test_parameters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="needs an alpha above 0"):
        LinearJob(dataset="made", label="stay", family="ridge", alpha=0)
    with pytest.raises(ValueError, match="with one it is 'ridge'"):
        LinearJob(dataset="made", label="stay", alpha=1)


def test_the_page_lists_each_parameter_of_the_job_with_its_default() -> None:
    shown = documented("linear-models.md")
    own = {
        name: field.default
        for name, field in LinearJob.model_fields.items()
        if name in LinearJob.__annotations__
    }
    assert shown.pop("alpha") == "0, and 1 for `ridge` and `elastic_net"
    assert shown == {n: str(each) for n, each in own.items() if n not in ("alpha", "executor")}
