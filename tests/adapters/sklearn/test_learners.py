"""Estimators are found by name, trained in batches, and averaged where that makes one of them."""

from typing import Any

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_iris
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier

from prefect_federated.adapters.sklearn.learners import (
    averaged,
    combination,
    learn,
    make,
    task_of,
    with_classes,
)
from prefect_federated.errors import ConfigurationError, UpdateRejected

SGD = "sklearn.linear_model.SGDClassifier"


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("sklearn.linear_model.SGDClasifier", {}, f"Did you mean {SGD}"),
        ("sklearn.SGDRegressor", {}, r"Did you mean sklearn\.linear_model\.SGDRegressor"),
        ("os.system", {}, "'os.system' is not one that a saved model may name"),
        ("hospital.models.Own", {}, "how a site allows more"),
        ("sklearn.svm.SVC", {}, "has no partial_fit.* Take the flow 'svm'"),
        ("sklearn.linear_model.Ridge", {}, "has no partial_fit.* Take the flow 'linear'"),
        (SGD, {"alhpa": 1}, "no parameter 'alhpa'. Did you mean 'alpha'"),
        (SGD, {"x": 1}, "no parameter 'x'. It has alpha, average"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_is_near(
    path: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(path, parameters)


def test_a_site_may_allow_another_class() -> None:
    path = "tests.adapters.sklearn.own.Mean"
    with pytest.raises(ConfigurationError, match="is not one that"):
        make(path, {})
    assert type(make(path, {"shift": 2.0}, allow=[path])).__name__ == "Mean"


@pytest.mark.parametrize(
    ("estimator", "wanted", "way"),
    [
        (SGDClassifier(), "auto", "average"),
        (SGDClassifier(average=True), "auto", "relay"),
        (SGDClassifier(), "relay", "relay"),
        (GaussianNB(), "auto", "exact"),
        (MLPClassifier(), "auto", "relay"),
        (MiniBatchKMeans(), "auto", "relay"),
    ],
    ids=str,
)
def test_how_sites_estimators_become_one(estimator: Any, wanted: Any, way: str) -> None:
    assert combination(estimator, wanted) == way


def test_a_way_that_is_none_for_the_estimator_is_refused_and_says_which_are() -> None:
    with pytest.raises(ConfigurationError, match=r"only by relay. What can: .*SGDRegressor"):
        combination(MLPClassifier(), "average")
    with pytest.raises(ConfigurationError, match="with average=true cannot be combined"):
        combination(SGDClassifier(average=True), "average")
    with pytest.raises(ConfigurationError, match=r"What can: .*GaussianNB"):
        combination(SGDRegressor(), "exact")


def test_training_is_that_of_partial_fit_on_shuffled_batches_with_all_classes() -> None:
    rows, label = load_iris(return_X_y=True)
    label = label.astype(np.float64)
    here = label < 1  # a site with one class
    ours = learn(
        SGDClassifier(random_state=0), rows[here], label[here], 3, epochs=2, batch_size=16, seed=4
    )
    expected, random = SGDClassifier(random_state=0), np.random.default_rng(4)
    for _ in range(2):
        order = random.permutation(50)
        for start in range(0, 50, 16):
            batch = order[start : start + 16]
            expected.partial_fit(rows[here][batch], label[here][batch], classes=[0.0, 1.0, 2.0])
    np.testing.assert_array_equal(ours.coef_, expected.coef_)
    assert ours.coef_.shape == (3, 4)


def test_an_average_is_weighted_and_of_like_arrays_only() -> None:
    rows, label = load_iris(return_X_y=True)
    parts = [
        learn(SGDClassifier(random_state=s), rows, label, 3, epochs=1, batch_size=32, seed=s)
        for s in (0, 1)
    ]
    expected = (3 * parts[0].coef_ + parts[1].coef_) / 4
    steps = max(each.t_ for each in parts)
    both = averaged(SGDClassifier, {"a": (parts[0], 150), "b": (parts[1], 50)})
    np.testing.assert_allclose(both.coef_, expected, rtol=1e-15)
    assert both.t_ == steps
    other = SGDClassifier().fit(rows[:, :2], label)
    with pytest.raises(UpdateRejected, match=r"site 'b': the 'coef_' .* has shape \(3, 2\)"):
        averaged(SGDClassifier, {"a": (both, 1), "b": (other, 1)})
    with pytest.raises(UpdateRejected, match="site 'a'"):
        averaged(SGDClassifier, {"a": (other, 1), "b": (both, 1)}, (3, 4))
    with pytest.raises(UpdateRejected, match="site 'a': it sent a SGDRegressor"):
        averaged(SGDClassifier, {"a": (SGDRegressor().fit(rows, label), 1), "b": (both, 1)})
    other = SGDClassifier().fit(rows, label)
    other.coef_[0, 0] = np.nan
    with pytest.raises(UpdateRejected, match="not finite"):
        averaged(SGDClassifier, {"a": (both, 1), "b": (other, 1)})


@pytest.mark.parametrize(
    "estimator", [SGDClassifier(random_state=0), GaussianNB(), MLPClassifier(random_state=0)]
)
def test_a_classifier_predicts_the_labels_own_classes_at_the_end(estimator: Any) -> None:
    rows, label = load_iris(return_X_y=True)
    numbers = label.astype(np.float64)
    fitted = learn(estimator, rows, numbers, 3, epochs=3, batch_size=16, seed=0)
    before = fitted.predict(rows).astype(int)
    names = np.array(["setosa", "versicolor", "virginica"])
    after = with_classes(fitted, list(names)).predict(rows)
    np.testing.assert_array_equal(after, names[before])


def test_what_an_estimator_learns() -> None:
    assert task_of(SGDClassifier()) == "classes"
    assert task_of(SGDRegressor()) == "values"
    assert task_of(MiniBatchKMeans()) == "none"
