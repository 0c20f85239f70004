"""Random numbers of one site task, on torch's generators, which all threads of a process share.

Random layers such as dropout draw from torch's default generators. Where sites train in threads of
one process their draws would mix, and a site's update would depend on what the others do.
"""

import threading
from types import TracebackType

import torch
from torch import Tensor

shared_generators = threading.RLock()
"""Held by whoever draws from torch's default generators, or sets their state."""


class RandomStream:
    """Random numbers of one task's own: as a context, torch's generators are in its state.

    At the end of the context they are as they were before, and the stream goes on from there in
    the next one. Only one thread at a time can be in such a context.

    Args:
        seed: Where the stream starts; the numbers are those after `torch.manual_seed(seed)`.
        device: The module's device, whose generator belongs to the stream beside the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.has_drawn = True
        """Whether anything was drawn in the last context; True before the first one."""
        self._cuda = device if device.type == "cuda" else None
        devices = [torch.device("cpu"), *([self._cuda] if self._cuda else [])]
        self._states = [torch.Generator(at).manual_seed(seed).get_state() for at in devices]
        self._outer: list[Tensor] = []

    def __enter__(self) -> None:
        shared_generators.acquire()
        self._outer = self._read()
        self._set(self._states)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            states = self._read()
            self._set(self._outer)
            pairs = zip(states, self._states, strict=True)
            self.has_drawn = not all(torch.equal(now, before) for now, before in pairs)
            self._states = states
        finally:
            shared_generators.release()

    def _read(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._cuda is not None:
            states.append(torch.cuda.get_rng_state(self._cuda))
        return states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._cuda is not None:
            torch.cuda.set_rng_state(states[1], self._cuda)
