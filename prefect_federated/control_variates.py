"""SCAFFOLD's control variates at a site, in NumPy: what an executor of any library needs.

A round's message is the model x and the server's control variate c under names with a prefix. An
executor with a training loop of its own does SCAFFOLD so::

    @executor
    def scaffold(received: Tensors, site: Site) -> Update:
        control = LocalControl(received, site)
        w = dict(control.model)
        for _ in range(steps):
            g = gradient(w)
            w = {name: w[name] - lr * (g[name] + control.correction[name]) for name in w}
        change = control.option_2(w, steps, lr)
        return Update(joined(w, change), weight=len(y))

Source: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
Algorithm 1: lines 6 to 13 at the site, 16 and 17 at the server.
"""

from collections.abc import Callable, Collection
from typing import cast

import numpy as np

from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site
from prefect_federated.kept import Kept
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.server_steps import stepped

PREFIX = "control/"
"""Begins the name of each tensor of a control variate in a message."""


def joined(model: Tensors, control: Tensors) -> dict[str, Tensor]:
    """Returns one set of tensors to send: the model's, and a control variate's with their prefix.

    Raises:
        ConfigurationError: a tensor of the model has a name that begins with the prefix.

    >>> list(joined({"w": np.ones(1)}, {"w": np.zeros(1)}))
    ['w', 'control/w']
    """
    for name in model:
        if name.startswith(PREFIX):
            raise ConfigurationError(
                f"the model's tensor {name!r} begins with {PREFIX!r}, as control variates do. "
                "Rename that part of the model."
            )
    return {**model, **{PREFIX + name: array for name, array in control.items()}}


def parted(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the model and the control variate of a message, both under the model's names.

    Raises:
        ConfigurationError: a control variate has no tensor of its shape in the model.
    """
    model = {name: array for name, array in tensors.items() if not name.startswith(PREFIX)}
    control = {
        name.removeprefix(PREFIX): array
        for name, array in tensors.items()
        if name.startswith(PREFIX)
    }
    for name, array in control.items():
        if name not in model or model[name].shape != array.shape:
            there = f"{model[name].shape} in the model" if name in model else "not in the model"
            raise ConfigurationError(
                f"the control variate of {name!r} has the shape {array.shape}; the tensor is "
                f"{there}. Start the job from a model that the sites build now."
            )
    return model, control


def zeros_for(model: Tensors) -> dict[str, Tensor]:
    """Returns the control variate of the first round: zero, for each float tensor of the model."""
    return {
        name: np.zeros(array.shape, array.dtype)
        for name, array in model.items()
        if np.issubdtype(array.dtype, np.inexact)
    }


def server_step(
    model: Tensors,
    control: Tensors,
    mean: Tensors,
    lr: float = 1.0,
    share: float = 1.0,
    kept: float = 1.0,
    buffers: Collection[str] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the server's next x and c.

        x <- x + lr (mean of y_i - x)
        c <- kept c + share (mean of c_i+ - c_i)

    Tensors without a control variate, such as a batch norm's statistics, become their mean.

    Args:
        model: x.
        control: c; what is missing in it is zero.
        mean: The mean of the round's updates, control variates with their prefix.
        lr: The server's learning rate; with 1 the new model is the mean, bit for bit.
        share: Which share of all sites answered, |S| / N.
        kept: What the last c is multiplied by: 1, unless N has changed.
        buffers: Names of tensors that are averaged, and have no control variate.

    Source: Algorithm 1, lines 16 and 17.
    """
    trained, changes = parted(mean)
    changes = {name: change for name, change in changes.items() if name not in buffers}
    new = {**model, **trained}
    if lr != 1:
        moves = {name: np.subtract(trained[name], model[name]) for name in changes}
        new |= stepped({name: model[name] for name in moves}, moves, lr)
    start = {
        name: np.multiply(control[name], change.dtype.type(kept))
        if name in control
        else np.zeros_like(change)
        for name, change in changes.items()
    }
    return new, stepped(start, changes, share)


class LocalControl:
    """A site's control variate c_i during one site task, and what it makes of the next.

    It starts from the c_i of the round whose update the server counted last, as the job's config
    says under `counted` (site -> round), and from zeros if none counted: so an update that was
    lost, refused or done twice never makes the mean of all c_i differ from the server's c.

    Args:
        received: The message's tensors: the model x, and the server's c with its prefix.
        site: The site; c_i lives in its folder of the job.
        names: The tensors of the model that are trained, and so have a control variate; those that
            came with one if None, and all float tensors in the first round, when none came. Others
            that came with one are told not to change.

    Attributes:
        model: x, the model as it was received.
        server: c, the server's control variate; zeros where none came.
        own: c_i, the site's.
        correction: c - c_i, what each local step adds to its gradient.

    Raises:
        ConfigurationError: the c_i that the server counted is not there or of another shape, or
            `counted` is not an object of rounds.
        SnapshotCorrupt: its file is damaged.
    """

    def __init__(self, received: Tensors, site: Site, names: Collection[str] | None = None) -> None:
        self._kept = Kept(site.state, "control")
        self._round = site.round
        self._start = _counted(site)
        self.model, server = parted(received)
        if names is None:
            names = server or [
                name for name, array in self.model.items() if np.issubdtype(array.dtype, np.inexact)
            ]
        self._answered = tuple(server or names)
        corrected = [name for name in self._answered if name in names and name in self.model]
        kept = {} if self._start is None else self._kept.read(self._start)
        self.server = {name: _of(server, self.model, name, "the server's") for name in corrected}
        self.own = {name: _of(kept, self.model, name, "the site's") for name in corrected}
        self.correction = {name: self.server[name] - self.own[name] for name in corrected}

    def option_1(self, gradient: Tensors) -> dict[str, Tensor]:
        """Keeps c_i+ = g_i(x), and returns c_i+ - c_i, to be sent beside the trained model.

        Args:
            gradient: Name -> the gradient of the site's mean loss at the model as it was received.
        """
        return self._keep(lambda name: gradient[name])

    def option_2(self, trained: Tensors, steps: int, lr: float) -> dict[str, Tensor]:
        """Keeps c_i+ = c_i - c + (x - y_i) / (K lr), and returns c_i+ - c_i, to be sent.

        Args:
            trained: y_i, the model after the local steps.
            steps: K, how many plain SGD steps were taken; c_i stays if 0.
            lr: The local learning rate of all of them, above 0.

        Raises:
            ConfigurationError: the learning rate is not above 0.
        """
        if not lr > 0:
            raise ConfigurationError(
                f"the learning rate is {lr}; option 2 of SCAFFOLD divides by it. Set one above 0, "
                "or take option 1."
            )
        if steps == 0:
            return self._keep(lambda name: self.own[name])
        return self._keep(
            lambda name: (self.model[name] - trained[name]) / (steps * lr) - self.correction[name]
        )

    def _keep(self, new: Callable[[str], Tensor]) -> dict[str, Tensor]:
        changes, kept = {}, {}
        for name in self._answered:
            dtype = self.model[name].dtype
            if name not in self.own:
                changes[name] = np.zeros(self.model[name].shape, dtype)
                continue
            changes[name] = np.asarray(np.subtract(new(name), self.own[name]), dtype)
            # What was told, not c_i+ itself, which differs from it by the rounding.
            kept[name] = np.asarray(self.own[name] + changes[name], dtype)
        self._kept.write(self._round, kept, after=self._start)
        return changes


def option_of(site: Site) -> int:
    """Returns which of the paper's options makes c_i+, by the job's config `option`; 2 by default.

    Raises:
        ConfigurationError: it is neither 1 nor 2.
    """
    option = site.config.get("option", 2)
    if isinstance(option, bool) or option not in (1, 2):
        raise ConfigurationError(
            f"config 'option' is {option!r}; SCAFFOLD has 1 (the gradient at the received model) "
            "and 2 (what the local steps have shown)."
        )
    return cast(int, option)


def _counted(site: Site) -> int | None:
    """Returns the round whose update of this site the server counted last; None if none did."""
    counted = site.config.get("counted") or {}
    if not isinstance(counted, dict):
        raise ConfigurationError(f"config 'counted' is {counted!r}; it says site -> round.")
    round = counted.get(site.name)
    if round is not None and (isinstance(round, bool) or not isinstance(round, int) or round < 0):
        raise ConfigurationError(f"config 'counted' says {round!r} of {site.name!r}, not a round.")
    return round


def _of(control: Tensors, model: Tensors, name: str, whose: str) -> Tensor:
    if name not in control:
        return np.zeros(model[name].shape, model[name].dtype)
    if control[name].shape != model[name].shape:
        raise ConfigurationError(
            f"{whose} control variate of {name!r} has the shape {control[name].shape}, the model's "
            f"tensor {model[name].shape}: the model is not that of the rounds before. Begin a new "
            "job for another model."
        )
    return control[name]
