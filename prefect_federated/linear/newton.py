"""Newton's method at the server: from sums of the sites at one point to the next point to ask.

One object holds a job's search; `tensors` and `Newton.restored` take it through a snapshot. A step
that makes the penalised deviance larger is halved, which costs a round.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from prefect_federated.errors import ModelUndetermined
from prefect_federated.linear.losses import Floats, Loss, Sums
from prefect_federated.linear.penalty import Penalty, minimum
from prefect_federated.linear.rank import check_rank
from prefect_federated.messages import Tensor, Tensors

TOLERANCE = 1e-16
"""The search ends where a step is so short, squared, in units of the standard errors."""
REST = 1e-19
"""The same of the step that would follow, where no standard errors are taken at the point."""
SHARE = 3e-9
"""Of each coefficient, the most that the step that would follow may change it by."""
MOST_HALVINGS = 20
NOISE = 1e-11
"""Relative rise of the deviance that may be rounding."""
SEPARATED = 2 * np.log(2)
"""A deviance below: each row's own class has a probability above one half."""
SLOW = 0.2
"""Share of the step before, squared, above which short steps lead to no end."""


class Newton:
    """The search for the coefficients with the least penalised deviance.

    Args:
        loss: Which one.
        names: The columns' names, without the intercept.
        classes: Rows of coefficients; 1 but for "multinomial".
        under: The penalty.

    Source: Nelder and Wedderburn 1972, "Generalized Linear Models", section 2; with absolute values
    in the penalty, Lee, Sun and Saunders 2014, "Proximal Newton-type Methods for Minimizing
    Composite Functions", algorithm 1, with halved steps for their line search.
    """

    def __init__(
        self, loss: Loss, names: Sequence[str], classes: int, under: Penalty, size: int
    ) -> None:
        self.loss = loss
        self.names = names
        self.classes = classes
        self.under = under
        self.asked: Floats = np.zeros(size)
        """The point at which the sites are asked for their sums."""
        self.point: Floats = np.zeros(size)
        """The best point so far."""
        self.halvings = 0
        self.is_done = False
        self._length = math.inf
        self._deviances: dict[str, float] = {}
        self._total: Sums | None = None

    @property
    def total(self) -> Sums:
        """The sums of all sites at the last point that was taken."""
        if self._total is None:
            raise RuntimeError("no round has been taken")
        return self._total

    @property
    def is_start(self) -> bool:
        """Whether the sites are to answer with their first sums, of no coefficients at all."""
        return self.loss == "poisson" and self._total is None and not self._deviances

    def take(self, by_site: Mapping[str, Sums]) -> None:
        """Takes the sites' sums at `asked`, and sets the next point, or `is_done`.

        Raises:
            ModelUndetermined: collinear columns, separated classes, or no better point.
        """
        sites = sorted(by_site)
        common = [site for site in sites if site in self._deviances]
        if common and self._is_worse(by_site, common):
            self._halve()
            return
        is_first, is_start = self._total is None, self.is_start
        self.halvings = 0
        self.point = self.asked
        self._total = total = add(by_site[site] for site in sites)
        if not is_start:
            self._deviances = {site: by_site[site].deviance for site in sites}
        if is_first and self.under.is_none:
            self._check_rank(total)
        best = minimum(total.curvature, total.curvature @ self.point + total.gradient, self.under)
        step = best - self.point
        length = float(step @ (total.curvature + self.under.square) @ step)
        if self.under.is_none and not is_first:
            self._check_separation(total, step, length)
        self.asked = best
        if not is_start and self._is_near(length, step, best):
            self.point, self.is_done = best, True
        self._length = length

    def tensors(self) -> dict[str, Tensor]:
        """Returns the search's state, for a snapshot."""
        state: dict[str, Tensor] = {
            "asked": self.asked,
            "point": self.point,
            "search": np.array([self.halvings, self.is_done, self._length], np.float64),
        }
        if self._total is not None:
            state |= {f"total.{name}": value for name, value in self._total.tensors().items()}
        for site, deviance in self._deviances.items():
            state[f"deviance.{site}"] = np.array([deviance])
        return state

    def restore(self, state: Tensors) -> None:
        """Goes on from the state that a snapshot holds."""
        self.asked, self.point = np.array(state["asked"]), np.array(state["point"])
        halvings, is_done, self._length = (float(each) for each in state["search"])
        self.halvings, self.is_done = int(halvings), bool(is_done)
        if "total.scalars" in state:
            named = {name: state[f"total.{name}"] for name in ("scalars", "gradient", "curvature")}
            self._total = Sums.of(named, len(self.asked), "of the snapshot")
        self._deviances = {
            name.removeprefix("deviance."): float(value[0])
            for name, value in state.items()
            if name.startswith("deviance.")
        }

    def _is_near(self, length: float, step: Floats, best: Floats) -> bool:
        """Whether the coefficients after a step of this length need no further one.

        Steps of Newton's method become shorter quadratically: the next one's squared length is
        about `length^3 / before^2`. Standard errors are of the point before the step, which must
        itself be near.
        """
        if self.under.is_none or math.isinf(self._length):
            return length <= TOLERANCE
        following = np.abs(step) * length / self._length  # each part shrinks as lengths do, squared
        is_settled = (
            length**3 <= REST * self._length**2 and (following <= SHARE * np.abs(best)).all()
        )
        return bool(length <= TOLERANCE**2 or is_settled)

    def _is_worse(self, by_site: Mapping[str, Sums], common: Sequence[str]) -> bool:
        """Whether the point asked is worse, at the sites that have answered here and before."""
        before = sum(self._deviances[site] for site in common) / 2 + self.under.value(self.point)
        now = sum(by_site[site].deviance for site in common) / 2 + self.under.value(self.asked)
        return not now <= before + NOISE * (abs(before) + 1)

    def _halve(self) -> None:
        self.halvings += 1
        if self.halvings > MOST_HALVINGS:
            raise ModelUndetermined(
                f"no better coefficients were found after {MOST_HALVINGS} halvings of a step. "
                "Scale the features, look for a label far beyond the others, or choose a larger "
                "`alpha`."
            )
        self.asked = (self.point + self.asked) / 2

    def _check_rank(self, total: Sums) -> None:
        columns = len(self.names) + 1
        block = total.curvature[:columns, :columns]
        products = block[1:, 1:] - np.outer(block[1:, 0], block[1:, 0]) / block[0, 0]
        check_rank(self.names, products, total.rows, np.diag(block)[1:])

    def _check_separation(self, total: Sums, step: Floats, length: float) -> None:
        """Refuses classes that some columns tell apart without error, where no best model is.

        Source: Albert and Anderson 1984, "On the Existence of Maximum Likelihood Estimates in
        Logistic Regression Models", theorems 1 and 2 (complete and quasi-complete separation).
        """
        if self.loss not in ("logistic", "multinomial"):
            return
        shape = (self.classes, len(self.names) + 1)
        if total.deviance < SEPARATED:
            sizes = np.abs(self.point.reshape(shape)).max(axis=0)
            what = "the features tell all rows' classes apart"
        elif SLOW * self._length < length < 1e-4 * SLOW:
            sizes = np.abs(step.reshape(shape)).max(axis=0)
            what = "the features tell the classes of some rows apart"
        else:
            return
        if not self.names:
            raise ModelUndetermined(f"{what}: a class has no rows.")
        place = int(np.argmax(sizes[1:]))
        raise ModelUndetermined(
            f"{what} without error, so their coefficients grow without end: {self.names[place]!r} "
            "seems to separate them. Choose a penalty, such as `alpha` 1, or name `features` "
            "without it."
        )


def add(parts: Iterable[Sums]) -> Sums:
    """Returns the sums over the rows of all sites, added in the order given."""
    every = list(parts)
    return Sums(
        sum(each.rows for each in every),
        sum(each.deviance for each in every),
        np.sum([each.gradient for each in every], axis=0),
        np.sum([each.curvature for each in every], axis=0),
    )
