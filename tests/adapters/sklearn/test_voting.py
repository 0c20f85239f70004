"""Members of an ensemble that sites have sent: what does not fit is refused."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.svm import SVC, LinearSVC

from prefect_federated.adapters.sklearn.voting import Calibrated, calibrate, check_member
from prefect_federated.errors import UpdateRejected


def member() -> Calibrated:
    rows, label = load_iris(return_X_y=True)
    return calibrate(LinearSVC(max_iter=50).fit(rows, label), rows, label)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_member_that_does_not_fit_is_refused_with_its_site() -> None:
    check_member(member(), "a", LinearSVC, 3, 4)
    rows, label = load_iris(return_X_y=True)
    with_rows = calibrate(SVC().fit(rows, label), rows, label)
    with pytest.raises(UpdateRejected, match="site 'a': it sent a SVC, and expected is a calibr"):
        check_member(with_rows, "a", LinearSVC, 3, 4)
    with pytest.raises(UpdateRejected, match="site 'a': it sent a ndarray"):
        check_member(rows, "a", LinearSVC, 3, 4)
    with pytest.raises(UpdateRejected, match=r"its model does not predict .*4 features"):
        check_member(member(), "a", LinearSVC, 3, 5)
    with pytest.raises(UpdateRejected, match="other classes or shapes"):
        check_member(member(), "a", LinearSVC, 2, 4)
    wrong = member()
    wrong.slopes = wrong.slopes[:1]
    with pytest.raises(UpdateRejected, match="other classes or shapes"):
        check_member(wrong, "a", LinearSVC, 3, 4)
    wrong = member()
    wrong.estimator.coef_[0, 0] = np.nan
    with pytest.raises(UpdateRejected, match="not finite"):
        check_member(wrong, "a", LinearSVC, 3, 4)
