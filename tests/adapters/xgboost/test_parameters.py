"""Parameters of XGBoost: what is not possible is refused with its reason, before any training."""

import numpy as np
import pytest
import xgboost

from prefect_federated.adapters.xgboost.parameters import (
    OBJECTIVES,
    Mode,
    first_score,
    resolve,
)
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue


@pytest.mark.parametrize(
    ("mode", "given", "told"),
    [
        ("bagging", {"max_dpth": 3}, "no parameter 'max_dpth'. Did you mean 'max_depth'"),
        ("bagging", {"subsample": 2}, "value 2 for Parameter subsample exceed bound"),
        ("bagging", {"reg_lambda": "much"}, "expect float but value='much'"),
        ("bagging", {"booster": "dart"}, "drops and rescales trees that other sites have grown"),
        ("cyclic", {"booster": "gblinear"}, "the job `linear` trains linear models"),
        ("bagging", {"multi_strategy": "multi_output_tree"}, "trees with several outputs"),
        ("bagging", {"process_type": "update"}, "changes trees that other sites have grown"),
        ("bagging", {"num_parallel_tree": 4}, "say `trees_per_round`"),
        ("histogram", {"tree_method": "exact"}, "it can be auto, hist, approx"),
        ("bagging", {"device": "cuda"}, "the site's to say"),
        ("bagging", {"n_jobs": 8}, "say `threads` in the job's `config`"),
        ("bagging", {"objective": "reg:squarederror"}, "it can be binary:logistic"),
        ("bagging", {"base_score": 0.5}, "the mean label of all sites"),
        ("bagging", {"lambda": 1, "reg_lambda": 2}, "the same parameter"),
        ("bagging", {"learning_rate": 1}, "as the job's own parameter"),
        ("bagging", {"n_estimators": 1}, "say the job's `rounds`"),
        ("bagging", {"eval_metric": "auc"}, "sites measure all metrics of the objective"),
        ("histogram", {"base_score": 0.5}, "say the job's `base_score`"),
        ("vertical", {"base_score": 0.5}, "say the job's `base_score`"),
        ("histogram", {"eval_metric": "auc"}, "say the job's `eval_metric`"),
        ("vertical", {"eval_metric": "auc"}, "say the job's `eval_metric`"),
        ("vertical", {"monotone_constraints": {"a": 1}}, "go by the number of a column"),
        ("vertical", {"interaction_constraints": [["a", "b"]]}, "go by the number of a column"),
    ],
)  # fmt: skip
def test_what_a_mode_cannot_do_is_refused_with_the_reason(
    mode: Mode, given: dict[str, JsonValue], told: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        resolve(mode, "binary", given)
    assert told in str(error.value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_with_what_is_resolved(objective: str) -> None:
    random = np.random.default_rng(0)
    group = {"qid": np.arange(60) // 6} if objective == "ranking" else {}
    matrix = xgboost.DMatrix(random.normal(size=(60, 3)), random.integers(0, 2, 60), **group)
    for name in OBJECTIVES[objective]:
        given = resolve("bagging", objective, {"objective": name, "reg_alpha": 0.1}, classes=3)
        assert given["alpha"] == 0.1
        trained = xgboost.train({**given, "base_score": 0.5, "nthread": 1}, matrix, 2)
        assert np.isfinite(trained.predict(matrix)).all()


def test_the_first_score_is_the_mean_label_where_it_has_one() -> None:
    assert first_score("binary", 10, 4) == 0.4
    assert 0 < first_score("binary", 10, 0) < 0.01
    assert first_score("regression", 4, -10) == -2.5
    assert first_score("poisson", 4, 0) > 0
    assert first_score("multiclass", 9, 9) == first_score("binary", 0, 0) == 0.5
