"""Metrics against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from prefect_federated.tabular.scores import is_better, scores

RANDOM = np.random.default_rng(0)


def test_two_classes() -> None:
    label = RANDOM.integers(0, 2, 300).astype(float)
    chance = RANDOM.random(300).round(2)  # with ties
    found = scores("binary", label, chance)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(label, chance), rel=1e-12)
    assert found["accuracy"] == metrics.accuracy_score(label, chance > 0.5)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(label, chance))
    assert "auc" not in scores("binary", np.ones(5), chance[:5])
    assert scores("binary", np.zeros(0), np.zeros(0)) == {}


def test_more_classes() -> None:
    label = RANDOM.integers(0, 3, 200).astype(float)
    chances = RANDOM.dirichlet(np.ones(3), 200)
    found = scores("multiclass", label, chances)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(label, chances), rel=1e-12)
    assert found["accuracy"] == metrics.accuracy_score(label, chances.argmax(axis=1))


def test_numbers_and_counts() -> None:
    label = RANDOM.poisson(3, 200).astype(float)
    mean = RANDOM.random(200) * 5 + 0.1
    found = scores("regression", label, mean)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(label, mean))
    assert found["r2"] == pytest.approx(metrics.r2_score(label, mean))
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(label, mean))
    found = scores("poisson", label, mean)
    assert found["deviance"] == pytest.approx(metrics.mean_poisson_deviance(label, mean))


def test_ranking_by_query() -> None:
    group = np.repeat(np.arange(5), 8)
    relevance = RANDOM.integers(0, 4, 40).astype(float)
    score = RANDOM.random(40)
    expected = [
        metrics.ndcg_score([2 ** relevance[group == q] - 1], [score[group == q]]) for q in range(5)
    ]
    found = scores("ranking", relevance, score, group)
    assert found["ndcg"] == pytest.approx(np.mean(expected), rel=1e-12)


def test_more_is_better_of_some_metrics() -> None:
    assert is_better("auc", 0.9, 0.8)
    assert is_better("rmse", 0.8, 0.9)
