"""Sums of weighted arrays that do not depend on the order in which the arrays come.

Floating-point addition is not associative: a running sum of three arrays depends, in its last bit,
on which came first. Here nothing is lost: what an addition rounds off is kept, and the total is
rounded once, at the end.

Source: Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B: what a
floating-point addition rounds off is a floating-point number itself, found by five more operations.
Shewchuk 1997, "Adaptive Precision Floating-Point Arithmetic", keeps exact sums as such numbers.
"""

import math
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated.memory import empty, zeros
from prefect_federated.messages import Tensor

Floats: TypeAlias = NDArray[np.float64]
Places: TypeAlias = NDArray[np.int64]

BLOCK = 1 << 15
"""Elements handled at once, so that temporaries stay in the processor's cache."""
SHORT_BITS = 36
"""Significant bits that are kept of a float32 number times a weight; see `ExactSum`."""

_FLOAT32_BITS, _FLOAT64_BITS = 24, 53
_ROUNDED_OFF = _FLOAT64_BITS - SHORT_BITS
_HALF = np.uint64(1 << (_ROUNDED_OFF - 1))
_KEPT = np.uint64((1 << 64) - (1 << _ROUNDED_OFF))
_SPARSE = 16  # errors at more than one element in so many are kept for all elements
_FEW = 64
_PIECES = 512  # lists of errors before they are merged into one


class ExactSum:
    """The exact sum of weighted arrays of one size, in 8 bytes an element and seldom more.

    What is added is each element times the weight, rounded to float64; for short numbers (float32
    and float16) to `SHORT_BITS` bits: off by 2**-37 of itself at most, and exact where the weight
    has at most 12 significant bits, as a count up to 4,096 has. The sum of these products is exact,
    in any order and however far apart their exponents lie.

    A float64 for each element holds most of the sum. What it cannot hold is kept where there is
    such a rest: for short products at a handful of 25 million elements. Where there is one at more
    than an element in 16, 8 bytes more are kept for each: for float64 arrays, and in sums of
    thousands of float32 arrays with long weights.

    Args:
        size: Elements of each array.
        is_short: Whether these are float32 or float16 numbers.
    """

    def __init__(self, size: int, *, is_short: bool) -> None:
        self.size = size
        self._is_short = is_short
        self._levels: list[Floats] = []  # the sum is that of the levels and of the rest
        self._rest = _Rest()
        self._most = size // _SPARSE + _FEW

    def add(self, array: Tensor, weight: float) -> None:
        """Adds a flat array of real numbers, each times the weight.

        Raises:
            FloatingPointError: a number is not finite, or the sum is beyond float64.
        """
        is_first = not self._levels
        if is_first:
            self._levels.append(empty((self.size,), np.float64))
        shortens = self._is_short and _significant_bits(weight) + _FLOAT32_BITS > SHORT_BITS
        room = _Room(min(BLOCK, self.size))
        with np.errstate(over="ignore", invalid="ignore"):  # seen by what it does to the sum
            for start in range(0, self.size, BLOCK):
                source = array[start : start + BLOCK]
                product = room.product[: source.size]
                product[...] = source  # converting first is quicker than multiplying across dtypes
                np.multiply(product, weight, out=product)
                if shortens:
                    _shorten(product)
                if is_first:
                    _check_finite(product)
                    self._levels[0][start : start + BLOCK] = product
                else:
                    self._add_block(start, product, room)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yields the sum, rounded to the nearest float64, by blocks: where each begins, and it.

        A block is overwritten by the next.
        """
        places, values = self._rest.merged()
        buffer = np.empty(min(BLOCK, self.size))
        for start in range(0, self.size, BLOCK):
            levels = [level[start : start + BLOCK] for level in self._levels]
            total = buffer[: levels[0].size]
            total[...] = levels[0]
            if len(levels) > 1:
                np.add(levels[0], levels[1], out=total)
                np.copyto(total, levels[0], where=levels[1] == 0)  # a zero keeps its sign
            if len(levels) > 2:
                deep = np.flatnonzero(np.any(levels[2:], axis=0))
                columns = [level[deep].tolist() for level in levels]
                total[deep] = [math.fsum(terms) for terms in zip(*columns, strict=True)]
            first, last = np.searchsorted(places, (start, start + BLOCK))
            for place, rest in _grouped(places[first:last] - start, values[first:last]):
                total[place] = math.fsum([*(float(level[place]) for level in levels), *rest])
            yield start, total

    def _add_block(self, start: int, addend: Floats, room: "_Room") -> None:
        places, rest = room.add(self._levels[0][start : start + BLOCK], addend)
        if not places.size:
            return
        _check_finite(rest)
        places += start
        for level in self._levels[1:]:
            level[places], rest = _two_sum(level[places], rest)
            places, rest = places[rest != 0], rest[rest != 0]
        self._rest.add(places, rest)
        if self._rest.count > self._most:
            self._rest.merged()
            if self._rest.count > self._most // 2:
                level = zeros((self.size,), np.float64)
                self._rest.move_into(level)
                self._levels.append(level)


class _Room:
    """Buffers of a block's size, which the blocks of an array share."""

    def __init__(self, size: int) -> None:
        self.product = np.empty(size)
        self._sum = np.empty(size)
        self._part = np.empty(size)
        self._inexact = np.empty((2, size), np.bool_)

    def add(self, total: Floats, addend: Floats) -> tuple[Places, Floats]:
        """Adds to `total`; returns where sums were rounded, and what rounding took from them."""
        count = addend.size
        after, part, inexact = self._sum[:count], self._part[:count], self._inexact[:, :count]
        np.add(total, addend, out=after)
        np.subtract(after, total, out=part)
        np.not_equal(part, addend, out=inexact[0])  # as the larger of the two shows; see _two_sum
        np.subtract(after, part, out=part)
        np.not_equal(part, total, out=inexact[1])
        if inexact.any():
            places = np.flatnonzero(np.logical_or(*inexact))
            _, rest = _two_sum(total[places], addend[places])
        else:
            places, rest = np.empty(0, np.int64), np.empty(0)
        total[...] = after
        return places, rest


class _Rest:
    """Numbers to add at few places; several at a place where one cannot hold their sum."""

    def __init__(self) -> None:
        self.count = 0
        self._pieces: list[tuple[Places, Floats]] = []

    def add(self, places: Places, values: Floats) -> None:
        self._pieces.append((places, values))
        self.count += places.size
        if len(self._pieces) > _PIECES:
            self.merged()

    def merged(self) -> tuple[Places, Floats]:
        """Returns places in rising order and their numbers, as few as pairwise sums make them."""
        if not self._pieces:
            return np.empty(0, np.int64), np.empty(0)
        places = np.concatenate([piece[0] for piece in self._pieces])
        values = np.concatenate([piece[1] for piece in self._pieces])
        while True:
            order = np.argsort(places, kind="stable")
            places, values = places[order], values[order]
            second = _odd_in_group(places)
            first = np.flatnonzero(second) - 1
            sums, errors = _two_sum(values[first], values[second])
            values[first], values[second] = sums, errors
            kept = values != 0
            before = places.size
            places, values = places[kept], values[kept]
            if places.size == before:
                break
        self._pieces, self.count = [(places, values)], places.size
        return places, values

    def move_into(self, level: Floats) -> None:
        """Writes the first number of each place into an array of zeros; the others stay."""
        places, values = self.merged()
        is_first = np.ones(places.size, np.bool_)
        is_first[1:] = places[1:] != places[:-1]
        level[places[is_first]] = values[is_first]
        self._pieces = [(places[~is_first], values[~is_first])]
        self.count = self._pieces[0][0].size


def _two_sum(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)


def _odd_in_group(places: Places) -> NDArray[np.bool_]:
    """Returns which elements are the second, fourth, ... of their equals in a sorted array."""
    starts = np.ones(places.size, np.bool_)
    starts[1:] = places[1:] != places[:-1]
    index = np.arange(places.size)
    first = np.maximum.accumulate(np.where(starts, index, 0))
    return np.asarray((index - first) % 2, np.bool_)


def _grouped(places: Places, values: Floats) -> Iterator[tuple[int, list[float]]]:
    """Yields each place with its numbers; the places are sorted."""
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    for place, group in groupby(pairs, key=itemgetter(0)):
        yield place, [value for _, value in group]


def _significant_bits(weight: float) -> int:
    mantissa = int(math.frexp(weight)[0] * 2**_FLOAT64_BITS)
    trailing_zeros = (mantissa & -mantissa).bit_length() - 1
    return mantissa.bit_length() - trailing_zeros


def _shorten(product: Floats) -> None:
    """Rounds to `SHORT_BITS` bits, ties away from zero: a carry into the exponent is right, too."""
    bits = product.view(np.uint64)
    np.add(bits, _HALF, out=bits)
    np.bitwise_and(bits, _KEPT, out=bits)


def _check_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        raise FloatingPointError("a number is not finite, or too large")
