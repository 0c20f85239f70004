"""Random noise for differential privacy: whole numbers, from the system's own randomness.

Noise of floating-point numbers gives away, in its last bits, what it should hide (Mironov 2012, "On
Significance of the Least Significant Bits for Differential Privacy"). So counts get whole numbers
that follow the discrete distributions exactly, and sums are whole multiples of a step.
"""

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Literal

STEPS = 2**20
"""The sensitivity of a sum is so many of its steps: what rounding adds to it is one millionth."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Mechanism:
    """Noise for `numbers` numbers that one site task releases together.

    One row that is added or removed moves each of the numbers by its sensitivity at most. Laplace
    noise gives each an equal part of epsilon; Gaussian noise is that of all numbers as one vector.

    Args:
        kind: Which distribution.
        epsilon: Of all numbers together.
        delta: Of all numbers together; half of it is for the noise, if that needs it, half for
            names of categories.
        numbers: How many there are; a row of counts, of which a row of data is in one, is one.
        source: Where randomness comes from: the system's, but for tests.
    """

    kind: Literal["laplace", "gaussian"]
    epsilon: float
    delta: float
    numbers: int
    source: random.Random

    @property
    def scale(self) -> float:
        """Scale of Laplace noise, or standard deviation of Gaussian, for a sensitivity of 1."""
        if self.kind == "laplace":
            return self.numbers / self.epsilon
        return math.sqrt(self.numbers) * gaussian_deviation(self.epsilon, self.delta / 2)

    def count(self, exact: float) -> float:
        """Returns a number of rows with noise; it may be below 0."""
        return exact + self._whole(self._fraction)

    def sum(self, exact: float, sensitivity: float) -> float:
        """Returns a sum with noise, to a whole number of steps.

        Args:
            exact: The sum.
            sensitivity: How much one row may move it, above 0.
        """
        step = sensitivity / STEPS
        # A sum that is rounded may move by one step more.
        return (round(exact / step) + self._whole(self._fraction * (STEPS + 1))) * step

    def threshold(self, names: int) -> float:
        """Returns the noised count from which on a category's name is released.

        A name that only one row has passes with a probability of delta at most, shared by `names`
        tables of names.

        Source: Korolova et al. 2009, "Releasing Search Queries and Clicks Privately", theorem 1.
        """
        chance = self.delta / 2 / max(names, 1)
        if self.kind == "laplace":
            return 1 + self.scale * math.log(1 / chance) + 1
        return 1 - self.scale * _NORMAL.inv_cdf(chance) + 1

    @property
    def _fraction(self) -> Fraction:
        return Fraction(math.ceil(self.scale * 2**20), 2**20)

    def _whole(self, scale: Fraction) -> int:
        if self.kind == "laplace":
            return discrete_laplace(scale, self.source)
        return discrete_gaussian(scale, self.source)

    def __str__(self) -> str:
        name = self.kind.capitalize()
        delta = f", delta {self.delta:g}" if self.kind == "gaussian" else ""
        return (
            f"{name}, epsilon {self.epsilon:g}{delta} for {self.numbers} numbers together; a count "
            f"is off by {self.scale:.3g} or so"
        )


def gaussian_deviation(epsilon: float, delta: float) -> float:
    """Returns the least standard deviation of Gaussian noise for a sensitivity of 1.

    Args:
        epsilon: Above 0.
        delta: Between 0 and 1.

    Source: Balle and Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy",
    theorem 8; by bisection. That the discrete Gaussian needs no more is Canonne, Kamath and Steinke
    2020, theorem 7, but for what is far below delta.
    """
    low, high = 0.0, 1.0
    while _delta_of(high, epsilon) > delta:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta_of(middle, epsilon) > delta else (low, middle)
    return high


def _delta_of(deviation: float, epsilon: float) -> float:
    half, shift = 1 / (2 * deviation), epsilon * deviation
    beyond = _normal_below(-half - shift)
    # e^epsilon may be too large for a float where what it is multiplied with is nearly 0.
    tail = math.exp(epsilon + math.log(beyond)) if beyond > 0 else 0.0
    return _normal_below(half - shift) - tail


def _normal_below(x: float) -> float:
    # Not NormalDist.cdf, which is 0 from -8.3 on.
    return math.erfc(-x / math.sqrt(2)) / 2


def discrete_laplace(scale: Fraction, source: random.Random) -> int:
    """Returns a whole number x with a probability in proportion to exp(-|x| / scale), exactly.

    Source: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy",
    algorithm 2.
    """
    t, s = scale.numerator, scale.denominator
    while True:
        u = source.randrange(t)
        if not _happens_exp(u, t, source):
            continue
        v = 0
        while _happens_exp(1, 1, source):
            v += 1
        size = (u + t * v) // s
        is_negative = source.getrandbits(1)
        if not (is_negative and size == 0):
            return -size if is_negative else size


def discrete_gaussian(deviation: Fraction, source: random.Random) -> int:
    """Returns a whole number x with a probability in proportion to exp(-x^2 / 2 deviation^2).

    Source: Canonne, Kamath and Steinke 2020, algorithm 3.
    """
    square = deviation * deviation
    t = math.floor(deviation) + 1
    while True:
        x = discrete_laplace(Fraction(t), source)
        above = (abs(x) - square / t) ** 2 / (2 * square)
        if _happens_exp(above.numerator, above.denominator, source):
            return x


def _happens_exp(numerator: int, denominator: int, source: random.Random) -> bool:
    """Tells something that is true with a probability of exp(-numerator / denominator), exactly."""
    while numerator > denominator:
        if not _happens_exp_below_one(1, 1, source):
            return False
        numerator -= denominator
    return _happens_exp_below_one(numerator, denominator, source)


def _happens_exp_below_one(numerator: int, denominator: int, source: random.Random) -> bool:
    k = 1
    while source.randrange(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
