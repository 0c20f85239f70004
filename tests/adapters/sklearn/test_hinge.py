"""The federated linear SVM ends at the pooled optimum; Fourier features come near the kernel."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from prefect_federated.adapters.sklearn.fourier import fourier, scale_gamma, spread
from prefect_federated.adapters.sklearn.hinge import Floats, Newton, fit, linear_svc, sums
from prefect_federated.errors import UpdateRejected


def parts(rows: int, sites: int = 3) -> list[slice]:
    ends = np.linspace(0, rows, sites + 1).astype(int)
    return [slice(a, b) for a, b in pairwise(ends)]


def federated(rows: Floats, label: Floats, classes: int, c: float) -> tuple[Floats, int]:
    newton, rounds = Newton.start(classes, rows.shape[1]), 0
    while not newton.is_done:
        newton = newton.after(
            {
                str(n): sums(rows[part], label[part], classes, newton.coef, c)
                for n, part in enumerate(parts(len(rows)))
            }
        )
        rounds += 1
        assert rounds < 60
    return newton.best, rounds


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_newton_ends_at_the_optimum_of_the_pooled_rows(c: float) -> None:
    rows, label = load_iris(return_X_y=True)
    rows = StandardScaler().fit_transform(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    rows, label = rows[order], label[order].astype(float)
    coef, rounds = federated(rows, label, 3, c)
    assert rounds < 25
    np.testing.assert_allclose(coef, fit(rows, label, 3, c), rtol=1e-9, atol=1e-9)
    for j in range(3):
        sign = np.where(label == j, 1.0, -1.0)

        def loss(w: Floats, sign: Floats = sign) -> float:
            short = np.maximum(0, 1 - sign * (rows @ w[:-1] + w[-1]))
            return float(0.5 * w[:-1] @ w[:-1] + c * short @ short)

        found = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8})
        assert loss(coef[j]) <= found.fun * (1 + 1e-12)
        np.testing.assert_allclose(coef[j], found.x, rtol=1e-3, atol=1e-3)  # BFGS ends early


def test_a_site_with_one_class_counts_in_the_sums() -> None:
    rows, label = load_breast_cancer(return_X_y=True)
    rows, order = StandardScaler().fit_transform(rows), np.argsort(label, kind="stable")
    coef, _ = federated(rows[order], label[order].astype(float), 2, 1.0)
    np.testing.assert_allclose(coef, fit(rows, label.astype(float), 2, 1.0), rtol=1e-8, atol=1e-9)


def test_without_one_of_the_sites_it_ends_at_the_optimum_of_the_others() -> None:
    rows, label = load_breast_cancer(return_X_y=True)
    rows, label = StandardScaler().fit_transform(rows), label.astype(float)
    newton, there = Newton.start(2, 30), parts(len(rows))
    for number in range(60):
        if number == 4:
            newton, there = newton.elsewhere(), there[:2]
        newton = newton.after(
            {str(n): sums(rows[p], label[p], 2, newton.coef, 1.0) for n, p in enumerate(there)}
        )
        if number >= 4 and newton.is_done:
            break
    end = there[-1].stop
    expected = fit(rows[:end], label[:end], 2, 1.0)
    np.testing.assert_allclose(newton.best, expected, rtol=1e-8, atol=1e-9)


def test_a_site_whose_sums_do_not_fit_is_refused() -> None:
    good = sums(np.ones((3, 2)), np.zeros(3), 2, np.zeros((1, 3)), 1.0)
    with pytest.raises(UpdateRejected, match=r"site 'b': the sums' 'hessian' has shape \(1, 5\)"):
        Newton.start(2, 2).after({"a": good, "b": {**good, "hessian": np.zeros((1, 5))}})
    with pytest.raises(UpdateRejected, match="not positive definite"):
        Newton.start(2, 2).after({"a": {**good, "hessian": np.full((1, 6), -9.0)}})
    with pytest.raises(UpdateRejected, match="'gradient' has what is not finite"):
        Newton.start(2, 2).after({"a": {**good, "gradient": np.full((1, 3), np.nan)}})


def test_fourier_features_come_within_a_hundredth_of_the_pooled_kernel_svm() -> None:
    rows, label = load_breast_cancer(return_X_y=True)
    ours, pooled = [], []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(rows))
        train, test = order[:398], order[398:]
        scaler = StandardScaler().fit(rows[train])
        a, b = scaler.transform(rows[train]), scaler.transform(rows[test])
        gamma = scale_gamma(
            {str(n): spread(a[part]) for n, part in enumerate(parts(len(a)))}, a.shape[1]
        )
        assert gamma == pytest.approx(1 / (a.shape[1] * a.var()), rel=1e-12)
        features = fourier(gamma, 500, seed, a.shape[1])
        coef, rounds = federated(features.transform(a), label[train].astype(float), 2, 1.0)
        assert rounds <= 10
        model = linear_svc(coef, np.array([0, 1]), 1.0)
        ours.append(model.score(features.transform(b), label[test]))
        pooled.append(SVC().fit(a, label[train]).score(b, label[test]))
    assert np.mean(ours) >= np.mean(pooled) - 0.01
