"""Saved scikit-learn objects predict the same bits after loading, and files name no other class."""

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.impute import SimpleImputer
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import (
    ElasticNet,
    LinearRegression,
    LogisticRegression,
    PassiveAggressiveClassifier,
    Perceptron,
    PoissonRegressor,
    Ridge,
    SGDClassifier,
    SGDOneClassSVM,
    SGDRegressor,
)
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from prefect_federated.adapters.sklearn.saved import fitted_of, from_tensors, load, to_tensors
from prefect_federated.adapters.sklearn.voting import calibrate, votes_of
from prefect_federated.errors import ConfigurationError, SnapshotCorrupt

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ESTIMATORS = [
    LinearRegression(),
    Ridge(alpha=0.5),
    ElasticNet(alpha=0.1),
    LogisticRegression(max_iter=20),
    PoissonRegressor(max_iter=20),
    KMeans(3, random_state=0, n_init=1),
    MiniBatchKMeans(3, random_state=0, n_init=1),
    SVC(),
    SVC(kernel="poly", decision_function_shape="ovo"),
    SVC(kernel="linear", class_weight="balanced"),
    LinearSVC(max_iter=50),
    SGDClassifier(random_state=0, loss="log_loss", average=True),
    SGDRegressor(random_state=0),
    Perceptron(random_state=0),
    PassiveAggressiveClassifier(random_state=0),
    MultinomialNB(),
    GaussianNB(),
    BernoulliNB(binarize=3.0),
    MLPClassifier((4,), max_iter=5, random_state=0),
    Pipeline([("scale", StandardScaler()), ("rbf", RBFSampler(random_state=1)), ("svm", SVC())]),
]
METHODS = ("predict", "predict_proba", "decision_function", "transform")


def saved(estimator: object, folder: Path, **options: Any) -> Path:
    for name, content in fitted_of(estimator, **options).files.items():
        (folder / name).write_bytes(content)
    return folder


def outputs(estimator: Any, rows: Any) -> dict[str, Any]:
    return {name: getattr(estimator, name)(rows) for name in METHODS if hasattr(estimator, name)}


def assert_same(one: Any, other: Any, rows: Any) -> None:
    before, after = outputs(one, rows), outputs(other, rows)
    assert before.keys() == after.keys() != set()
    for name, values in before.items():
        assert values.dtype == after[name].dtype
        assert np.array_equal(values, after[name]), name


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_a_loaded_estimator_predicts_the_same_bits(estimator: Any, tmp_path: Path) -> None:
    rows, label = load_iris(return_X_y=True)
    estimator.fit(rows, label)
    loaded = load(saved(estimator, tmp_path))
    assert type(loaded) is type(estimator)
    assert_same(estimator, loaded, rows)
    travelled = from_tensors(to_tensors(estimator), "a")
    assert_same(estimator, travelled, rows)
    if hasattr(estimator, "partial_fit"):  # it learns on as the original does
        for each in (estimator, travelled):
            each.partial_fit(rows[::-1], label[::-1])
        if not isinstance(estimator, MLPClassifier):  # whose Adam begins anew
            assert_same(estimator, travelled, rows)


def test_a_pipeline_of_a_data_frames_columns_predicts_the_same_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(50, 9, 80),
            "ca": np.where(random.random(80) < 0.3, np.nan, random.integers(0, 4, 80)),
            "pain": random.choice(["typical", "none", "ein Stich"], 80),
        }
    )
    numeric = Pipeline([("fill", SimpleImputer()), ("scale", StandardScaler())])
    hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encode = ColumnTransformer([("n", numeric, ["age", "ca"]), ("c", hot, ["pain"])])
    label = np.where(random.random(80) < 0.5, "sick", "well")
    whole = Pipeline([("encode", encode), ("model", LogisticRegression())]).fit(frame, label)
    loaded = load(saved(whole, tmp_path))
    assert_same(whole, loaded, frame)
    frame.loc[0, "pain"] = "never met"
    assert_same(whole, loaded, frame)
    assert list(loaded[0].get_feature_names_out()) == list(encode.get_feature_names_out())


def test_an_ensemble_of_calibrated_members_predicts_the_same_bits(tmp_path: Path) -> None:
    rows, label = load_iris(return_X_y=True)
    members = []
    for name, part in (("a", label < 2), ("b", label > 0), ("c", label >= 0)):
        fitted = SVC(kernel="linear").fit(rows[part], label[part])
        members.append((name, calibrate(fitted, rows[part], label[part]), float(part.sum())))
    ways: tuple[Literal["vote", "score"], ...] = ("vote", "score")
    for by in ways:
        whole = votes_of(members, [0, 1, 2], by)
        assert whole.predict_proba(rows).sum(axis=1) == pytest.approx(1)
        assert (whole.predict(rows) == label).mean() > 0.9
        assert_same(whole, load(saved(whole, tmp_path)), rows)


def test_platts_sigmoid_is_the_one_that_libsvm_would_fit() -> None:
    rows, label = load_breast_cancer(return_X_y=True)
    rows = StandardScaler().fit_transform(rows)
    fitted = SVC().fit(rows[:300], label[:300])
    calibrated = calibrate(fitted, rows[300:], label[300:])
    scores = fitted.decision_function(rows[300:])
    n1, n0 = (label[300:] == 1).sum(), (label[300:] == 0).sum()
    target = np.where(label[300:] == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    chance = calibrated.predict_proba(rows[300:])[:, 1]
    # At the optimum of the logistic loss both moments of chance and target are equal.
    assert float((chance - target).sum()) == pytest.approx(0, abs=1e-4)
    assert float((scores * (chance - target)).sum()) == pytest.approx(0, abs=1e-4)


class Own(BaseEstimator):  # type: ignore[misc]
    """A job's own estimator."""

    def __init__(self, power: float = 2.0, extra: object = None) -> None:
        self.power = power
        self.extra = extra

    def partial_fit(self, rows: Any, label: Any) -> "Own":
        self.mean_ = rows.mean(axis=0) ** self.power
        self.names_ = np.array(["a", "b"])
        return self

    def predict(self, rows: Any) -> Any:
        return rows @ self.mean_


def test_an_estimator_of_the_jobs_own_is_saved_where_both_sides_allow_it(tmp_path: Path) -> None:
    rows, label = load_iris(return_X_y=True)
    own, path = Own(float("inf")).partial_fit(rows / 10, label), f"{Own.__module__}.Own"
    with pytest.raises(ConfigurationError, match="not among the classes"):
        fitted_of(own)
    folder = saved(own, tmp_path, allow=[path])
    with pytest.raises(SnapshotCorrupt, match="not one that a saved model may name"):
        load(folder)
    loaded = from_tensors(to_tensors(own, allow=[path]), "a", allow=[path])
    assert loaded.power == float("inf")
    assert_same(own, loaded, rows)
    with pytest.raises(ConfigurationError, match=r"its 'extra' is a builtins\.function"):
        fitted_of(own.set_params(extra=saved), allow=[path])


@pytest.fixture
def svc(tmp_path: Path) -> Path:
    rows, label = load_iris(return_X_y=True)
    return saved(SVC().fit(rows, label), tmp_path)


def changed(folder: Path, **changes: Any) -> None:
    file = folder / "model.json"
    document = json.loads(file.read_text())
    for path, value in changes.items():
        place, *names = document["model"], *path.split("/")
        for name in names[:-1]:
            place = place[name]
        if value is None:
            del place[names[-1]]
        else:
            place[names[-1]] = value
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class": "os.system"}, "'os.system' is not one"),
        ({"class": "subprocess.Popen"}, "not one that a saved model may name"),
        ({"class": "sklearn.preprocessing.FunctionTransformer"}, "not one"),
        ({"class": "sklearn.svm.SCV"}, r"Near is sklearn\.svm\.SVC"),
        ({"parameters/kernal": "rbf"}, "takes no such parameters"),
        ({"parameters/memory": "/tmp/cache"}, "'memory' names a folder of pickled results"),
        ({"attributes/predict": 1}, "is a function, and no attribute"),
        ({"attributes/__class__": 1}, "are no parameters or attributes"),
        ({"attributes/a.b": 1}, "are no parameters or attributes"),
        ({"attributes/x_": {"is": "call", "of": []}}, "is no value"),
        ({"attributes/x_": {"is": "array", "name": "a99"}}, "there is no array 'a99'"),
        ({"attributes/x_": {"is": "texts", "of": ["a"], "shape": [2]}}, "1 texts are not"),
        ({"attributes/_n_support": {"is": "array", "name": "a1"}}, "do not fit together"),
        ({"attributes/_dual_coef_": {"is": "array", "name": "a0"}}, "do not fit together"),
        ({"attributes/_sparse": True}, "do not fit together"),
        ({"attributes/support_vectors_": {"is": "array", "name": "a0"}}, "do not fit together"),
        ({"parameters/kernel": "precomputed"}, "do not fit together"),
        ({"attributes/_impl": "nu_svr"}, "do not fit together"),
        ({"attributes/shape_fit_": {"is": "tuple", "of": [1, 4]}}, "do not fit together"),
        ({"is": "dict"}, "is no value"),
    ],
)
def test_a_hostile_file_is_refused_and_runs_nothing(
    svc: Path, changes: dict[str, Any], said: str
) -> None:
    changed(svc, **changes)
    with pytest.raises(SnapshotCorrupt, match=said):
        load(svc)


def test_steps_into_arrays_that_are_too_short_are_refused(tmp_path: Path) -> None:
    rows, label = load_iris(return_X_y=True)
    fitted = SGDClassifier(average=True).fit(rows, label)
    fitted._average_coef = fitted._average_coef[:1]
    with pytest.raises(SnapshotCorrupt, match="arrays of a SGDClassifier do not fit together"):
        from_tensors(to_tensors(fitted), "site 'a'")
    empty = SGDClassifier().fit(rows, label == 1)
    empty.coef_ = np.zeros((0, 4))
    with pytest.raises(SnapshotCorrupt, match="arrays of a SGDClassifier do not fit together"):
        from_tensors(to_tensors(empty), "site 'a'")
    short = MiniBatchKMeans(3, n_init=1).fit(rows)
    short._counts = short._counts[:1]
    with pytest.raises(SnapshotCorrupt, match="arrays of a MiniBatchKMeans do not fit together"):
        from_tensors(to_tensors(short), "site 'a'")


@pytest.mark.parametrize(
    "estimator",
    [
        SGDClassifier(average=True),
        SGDRegressor(average=3),
        SGDOneClassSVM(average=True),
        Perceptron(),
        MiniBatchKMeans(2, n_init=1),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("classes", [2, 3])
def test_an_estimator_that_has_travelled_learns_on(estimator: Any, classes: int) -> None:
    rows, label = load_iris(return_X_y=True)
    here, there = (clone(estimator).set_params(random_state=0) for _ in range(2))
    of_classes = {"classes": np.arange(classes)} if is_classifier(estimator) else {}
    for _ in range(3):
        here.partial_fit(rows, label % classes, **of_classes)
        there.partial_fit(rows, label % classes, **of_classes)
        there = from_tensors(to_tensors(there), "site 'a'")
    assert_same(here, there, rows)


def test_damaged_files_are_refused_with_their_name(svc: Path) -> None:
    arrays = (svc / "arrays.safetensors").read_bytes()
    (svc / "arrays.safetensors").write_bytes(arrays[:-8])
    with pytest.raises(SnapshotCorrupt, match=r"arrays\.safetensors is not a"):
        load(svc)
    (svc / "arrays.safetensors").write_bytes(arrays)
    (svc / "model.json").write_text('{"format": ' + "[" * 100_000)
    with pytest.raises(SnapshotCorrupt, match=r"model\.json is not a saved"):
        load(svc)
    (svc / "model.json").unlink()
    with pytest.raises(SnapshotCorrupt, match="cannot be read"):
        load(svc)


def test_a_model_of_another_version_is_loaded_with_a_warning(svc: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(svc)
    file = svc / "model.json"
    document = json.loads(file.read_text()) | {"scikit-learn": "0.24.1"}
    file.write_text(json.dumps(document))
    with pytest.warns(UserWarning, match=r"saved by scikit-learn 0\.24\.1"):
        load(svc)
