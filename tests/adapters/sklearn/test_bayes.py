"""Naive Bayes of the sites' sums is naive Bayes of the pooled rows."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB

from prefect_federated.adapters.sklearn.bayes import merged, site_sums
from prefect_federated.errors import ConfigurationError, UpdateRejected

MODELS = [
    GaussianNB(),
    GaussianNB(var_smoothing=1e-3, priors=[0.2, 0.3, 0.5]),
    MultinomialNB(alpha=0.5),
    MultinomialNB(fit_prior=False),
    BernoulliNB(binarize=2.0),
    BernoulliNB(binarize=1.0, class_prior=[0.2, 0.3, 0.5]),
]


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("is_sorted", [True, False])
def test_it_equals_the_pooled_model(model: Any, is_sorted: bool) -> None:
    rows, label = load_iris(return_X_y=True)
    rows = rows + 100 * isinstance(model, GaussianNB)  # far from 0: sums of squares would cancel
    if not is_sorted:  # else each site has one class or two
        order = np.random.default_rng(0).permutation(len(rows))
        rows, label = rows[order], label[order]
    kind, parameters = type(model), model.get_params()
    sites = {
        str(part): site_sums(kind(**parameters), rows[part], label[part], 3)
        for part in (slice(0, 20), slice(20, 90), slice(90, 150))
    }
    ours = merged(kind(**parameters), sites, np.arange(3), 4)
    pooled = kind(**parameters).fit(rows, label)
    np.testing.assert_array_equal(ours.predict(rows), pooled.predict(rows))
    np.testing.assert_allclose(ours.predict_proba(rows), pooled.predict_proba(rows), rtol=1e-8)
    fitted = [name for name in vars(pooled) if name.endswith("_")]
    assert set(fitted) <= set(vars(ours))
    for name in fitted:
        np.testing.assert_allclose(getattr(ours, name), getattr(pooled, name), rtol=1e-10)


def test_the_smoothing_is_a_share_of_the_pooled_rows_largest_variance() -> None:
    rows, label = load_breast_cancer(return_X_y=True)
    sites = {str(i): site_sums(GaussianNB(), rows[i::3], label[i::3], 2) for i in range(3)}
    ours = merged(GaussianNB(), sites, np.arange(2), rows.shape[1])
    pooled = GaussianNB().fit(rows, label)
    assert ours.epsilon_ == pytest.approx(pooled.epsilon_, rel=1e-12)
    np.testing.assert_allclose(ours.var_, pooled.var_, rtol=1e-10)


def test_what_cannot_be_counted_or_merged_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"numbers below 0\. Set scale to false"):
        site_sums(MultinomialNB(), np.full((2, 2), -1.0), np.zeros(2), 2)
    good = site_sums(GaussianNB(), np.ones((2, 2)), np.array([0, 1]), 2)
    with pytest.raises(UpdateRejected, match=r"site 'b': the sums' 'mean' has shape \(2, 3\)"):
        merged(GaussianNB(), {"a": good, "b": {**good, "mean": np.zeros((2, 3))}}, np.arange(2), 2)
    with pytest.raises(UpdateRejected, match="site 'a': the sums' 'rows' has a number below 0"):
        merged(GaussianNB(), {"a": {**good, "rows": -good["rows"]}, "b": good}, np.arange(2), 2)
    one = site_sums(GaussianNB(), np.ones((2, 2)), np.zeros(2), 2)
    with pytest.raises(UpdateRejected, match="no site has a training row of the class 1"):
        merged(GaussianNB(), {"a": one}, np.arange(2), 2)
