"""The server's optimizers: the sites' mean model is a gradient, which SGD or Adam follows.

Source: Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2 (FedAdagrad, FedYogi,
FedAdam); with SGD and momentum it is FedAvgM (Hsu et al. 2019). The paper's Delta_t is `mean -
model`; here the gradient g is `model - mean`, so that steps are those of optimizers elsewhere.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from prefect_federated.errors import ConfigurationError
from prefect_federated.memory import empty
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.server_steps import check_fits

OptimizerName: TypeAlias = Literal["sgd", "adam", "yogi", "adagrad"]
Schedule: TypeAlias = Literal["constant", "step", "exponential", "cosine"]

_FIRST, _SECOND = "first_moment", "second_moment"
_BLOCK = 1 << 15  # elements handled at once, so that temporaries stay in the processor's cache


@dataclass(frozen=True)
class ServerOptimizer:
    """Makes a step from the global model along the gradient `model - mean`.

    With g that gradient, m and v the moments, t the round (from 1) and eta the learning rate:

        sgd      m <- momentum m + g
                 x <- x - eta m
        adagrad  v <- v + g^2
                 x <- x - eta g / (sqrt(v) + tau)
        adam     m <- beta1 m + (1 - beta1) g
                 v <- beta2 v + (1 - beta2) g^2
                 x <- x - eta m / (sqrt(v) + tau)
        yogi     m and x as adam
                 v <- v - (1 - beta2) g^2 sign(v - g^2)

    v begins at tau^2, as in the paper; so Adagrad is torch's with `initial_accumulator_value` tau^2
    and `eps` tau, and the paper's with beta1 = 0, as in its experiments. Adam with
    `bias_correction` is torch's: v begins at 0, and m / (1 - beta1^t) and v / (1 - beta2^t) take
    the place of m and v, which in the first rounds would be too small; the paper's Adam
    (`bias_correction=False`) does without.

    Args:
        name: "sgd", "adam", "yogi" or "adagrad".
        lr: Learning rate eta, above 0, where `step` is given none. 1 is FedAvg's with plain "sgd";
            the adaptive ones move each element by about eta a round, so they want 0.1 or less.
        momentum: Of "sgd": 0 or more, below 1; 0 needs no moments.
        beta1: Decay of the first moment, 0 or more, below 1.
        beta2: Decay of the second moment, 0 or more, below 1.
        tau: Added to the root of the second moment, above 0: the larger, the less adaptive.
        bias_correction: Whether "adam" corrects its moments, as torch's does.

    Raises:
        ConfigurationError: an unknown name, or a number out of its range.
    """

    name: OptimizerName
    lr: float = 1.0
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = True

    def __post_init__(self) -> None:
        _check_choice("server optimizer", self.name, get_args(OptimizerName))
        for option in "momentum", "beta1", "beta2":
            if not 0 <= getattr(self, option) < 1:
                raise ConfigurationError(
                    f"the server optimizer's {option} is {getattr(self, option)}; write 0 or more, "
                    "below 1."
                )
        for option in "lr", "tau":
            if not 0 < getattr(self, option) < math.inf:
                raise ConfigurationError(
                    f"the server optimizer's {option} is {getattr(self, option)}; write a number "
                    "above 0."
                )

    def step(
        self,
        model: Tensors,
        mean: Tensors,
        moments: Mapping[str, Tensors],
        round: int,
        buffers: Collection[str] = (),
        lr: float | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensors]]:
        """Returns the next model and the moments after the step; changes none of its arguments.

        Float tensors keep the model's own dtype. Buffers, and tensors that are not of floats, are
        the mean's as they are; tensors that the mean lacks stay. Complex numbers are taken by their
        real and imaginary parts. With "sgd", a learning rate of 1 and no momentum, the next model
        is the mean, to the last bit.

        Args:
            model: The global model x, from which the sites trained.
            mean: The sites' mean.
            moments: What the last step returned; what is not the optimizer's own in it is left
                out. Float32, or float64 for float64 tensors; each as large as the model.
            round: The round, from 1, which Adam's bias correction needs.
            buffers: Names of tensors to average and not to optimize, such as a batch norm's.
            lr: The round's learning rate, as `learning_rate` says; the optimizer's own if None.

        Raises:
            UpdateRejected: the mean has a tensor that the model has not, or in another shape.
        """
        check_fits(model, mean, "the sites' mean")
        lr = self.lr if lr is None else lr
        after: dict[str, dict[str, Tensor]] = {kept: {} for kept in self._kept}
        result = dict(model)
        is_mean = self.name == "sgd" and self.momentum == 0 and lr == 1
        for name, average in mean.items():
            before = model[name]
            if is_mean or name in buffers or not np.issubdtype(before.dtype, np.inexact):
                result[name] = average.astype(before.dtype, copy=False)
                continue
            precise = np.result_type(before.dtype, np.float32)
            for kept in self._kept:
                after[kept][name] = empty(before.shape, precise)
            last = {kept: moments.get(kept, {}).get(name) for kept in self._kept}
            now = {kept: after[kept][name] for kept in self._kept}
            result[name] = self._stepped(before, average, last, now, round, lr)
        return result, {kept: tensors for kept, tensors in after.items() if tensors}

    @property
    def _kept(self) -> tuple[str, ...]:
        if self.name == "sgd":
            return (_FIRST,) if self.momentum else ()
        return (_SECOND,) if self.name == "adagrad" else (_FIRST, _SECOND)

    def _stepped(
        self,
        before: Tensor,
        average: Tensor,
        last: Mapping[str, Tensor | None],
        now: Mapping[str, Tensor],
        round: int,
        lr: float,
    ) -> Tensor:
        """Returns a tensor after the step; writes its moments into `now`."""
        after = empty(before.shape, before.dtype)
        x, target, goal = _reals(before), _reals(after), _reals(average)
        olds = {kept: None if array is None else _reals(array) for kept, array in last.items()}
        news = {kept: _reals(array) for kept, array in now.items()}
        precise = np.result_type(x.dtype, np.float32)
        for start in range(0, x.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            old = {kept: None if array is None else array[block] for kept, array in olds.items()}
            new = {kept: array[block] for kept, array in news.items()}
            here = x[block].astype(precise)
            gradient = here - goal[block]
            target[block] = here - precise.type(lr) * self._direction(gradient, old, new, round)
        return after

    def _direction(
        self,
        g: Tensor,
        old: Mapping[str, Tensor | None],
        new: Mapping[str, Tensor],
        round: int,
    ) -> Tensor:
        """Writes a block's moments into `new`; returns what the step is the learning rate times."""
        real = g.dtype.type
        corrects = self.name == "adam" and self.bias_correction
        if self.name == "sgd":
            if not self.momentum:
                return g
            m = old[_FIRST]
            new[_FIRST][...] = g if m is None else real(self.momentum) * m + g
            return new[_FIRST]
        m, v = old.get(_FIRST), old[_SECOND]
        if v is None:
            v = np.full_like(g, 0 if corrects else self.tau**2)
        square, decay = g * g, real(1 - self.beta2)
        if self.name == "adagrad":
            new[_SECOND][...] = v + square
            return np.asarray(g / (np.sqrt(new[_SECOND]) + real(self.tau)))
        if self.name == "adam":
            new[_SECOND][...] = real(self.beta2) * v + decay * square
        else:
            new[_SECOND][...] = v - decay * square * np.sign(v - square)
        fresh = real(1 - self.beta1) * g
        new[_FIRST][...] = fresh if m is None else real(self.beta1) * m + fresh
        first, second = (1 - self.beta1**round, 1 - self.beta2**round) if corrects else (1.0, 1.0)
        root = np.sqrt(new[_SECOND]) / real(math.sqrt(second)) + real(self.tau)
        return np.asarray(new[_FIRST] / real(first) / root)


def learning_rate(
    schedule: Schedule,
    lr: float,
    round: int,
    rounds: int,
    *,
    warmup: int = 0,
    every: int | None = None,
    factor: float | None = None,
) -> float:
    """Returns the learning rate of a round.

    In the warm-up it rises evenly, to `lr` in the round `warmup`. Then, k rounds later (k = 0 in
    the first) of the n that are left, it is

        constant     lr
        step         lr * factor ** (k // every)
        exponential  lr * factor ** k
        cosine       lr * (1 + cos(pi * k / n)) / 2

    >>> [round(learning_rate("cosine", 1.0, r, 4, warmup=1), 3) for r in range(1, 5)]
    [1.0, 1.0, 0.75, 0.25]

    Args:
        schedule: "constant", "step", "exponential" or "cosine".
        lr: The full learning rate.
        round: The round, from 1.
        rounds: Rounds of the job.
        warmup: Rounds of warm-up, 0 or more.
        every: Rounds between the steps of "step"; a third of those after the warm-up if None.
        factor: Of "step" (0.1 if None) and "exponential" (0.99 if None); above 0, at most 1.

    Raises:
        ConfigurationError: an unknown schedule, or a number out of its range.
    """
    _check_choice("learning-rate schedule", schedule, get_args(Schedule))
    left = max(rounds - warmup, 1)
    factor = (0.1 if schedule == "step" else 0.99) if factor is None else factor
    every = max(left // 3, 1) if every is None else every
    for name, value, fits, expected in (
        ("warmup", warmup, warmup >= 0, "0 or more rounds"),
        ("every", every, every >= 1, "1 round or more"),
        ("factor", factor, 0 < factor <= 1, "a number above 0, at most 1"),
    ):
        if not fits:
            raise ConfigurationError(f"the schedule's {name} is {value}; write {expected}.")
    if round <= warmup:
        return lr * round / warmup
    done = round - warmup - 1
    if schedule == "step":
        return lr * float(factor ** (done // every))
    if schedule == "exponential":
        return lr * float(factor**done)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done / left)) / 2
    return lr


def _check_choice(what: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise ConfigurationError(
            f"there is no {what} {name!r}; choose one of {', '.join(choices)}."
        )


def _reals(array: Tensor) -> Tensor:
    """Returns an array's numbers in one row: a view of a contiguous array; of another, a copy."""
    flat = np.ascontiguousarray(array.reshape(-1))
    return flat.view(flat.real.dtype) if np.iscomplexobj(flat) else flat
