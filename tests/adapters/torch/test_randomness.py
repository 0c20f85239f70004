"""The same seed gives the same bits, alone, beside other sites in threads, and in a job."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from prefect_federated import simulate
from prefect_federated.adapters.torch import TrainTest
from prefect_federated.adapters.torch.randomness import RandomStream
from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue, Update
from tests.adapters.torch.noisy import Augmented, noisy

CPU = torch.device("cpu")


def site(number: int) -> Site:
    # One thread of torch for each: several that wait for two processors are slow.
    return Site(f"site-{number}", Path(), Path(), {"threads": 1}, seed=number, round=1)


def bits(update: Update) -> bytes:
    return b"".join(array.tobytes() for array in update.tensors.values())


def test_a_stream_gives_what_its_seed_gives_and_leaves_the_others_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(1)
    outer = torch.rand(3)

    torch.manual_seed(1)
    stream = RandomStream(5, CPU)
    seen = [torch.rand(1)]
    with stream:
        drawn = [torch.rand(2)]
    assert stream.has_drawn
    seen.append(torch.rand(1))
    with stream:
        drawn.append(torch.rand(2))
    with stream:
        pass
    assert not stream.has_drawn
    seen.append(torch.rand(1))
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(torch.cat(seen), outer)


def test_a_stream_whose_body_fails_gives_the_generator_back() -> None:
    def fail() -> None:
        with RandomStream(5, CPU):
            torch.rand(1)
            raise ValueError

    before = torch.get_rng_state()
    with pytest.raises(ValueError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
    with ThreadPoolExecutor(1) as other, RandomStream(6, CPU):  # nor is it held
        assert other.submit(lambda: True).result()


@pytest.mark.parametrize("source", ["augmented rows", "a shuffling loader"])
def test_sites_in_threads_get_the_update_that_they_get_alone(source: str) -> None:
    def loaded(here: Site) -> TrainTest:
        loader = DataLoader(Augmented(here.seed), batch_size=8, shuffle=True)
        return TrainTest(loader, loader)

    executor = noisy if source == "augmented rows" else replace(noisy, data=loaded)
    model = executor.initialize({}, site(1)).tensors
    alone = [executor.train(model, site(number)) for number in range(4)]
    together = threading.Barrier(4)

    def train(number: int) -> Update:
        together.wait()
        return executor.train(model, site(number))

    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(train, range(4)))
    assert [bits(update) for update in beside] == [bits(update) for update in alone]
    assert [update.metrics for update in beside] == [update.metrics for update in alone]
    assert len({bits(update) for update in alone}) == 4


def test_a_model_that_draws_nothing_trains_outside_of_the_stream() -> None:
    """Else sites in threads would wait for each other, step by step."""
    entered: list[bool] = []

    class Plain(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            entered.append(_is_free())
            return super().forward(inputs)

    x, y = torch.randn(40, 3), torch.zeros(40, dtype=torch.long)
    plain = replace(
        noisy, build=lambda site: Plain(3, 2), data=lambda site: TrainTest((x, y), (x[:0], y[:0]))
    )
    plain.train(plain.initialize({}, site(1)).tensors, site(1))
    assert entered == [False, *[True] * 4, False, *[True] * 4]  # each epoch's first step


def _is_free() -> bool:
    """Returns whether another thread may enter a stream now."""
    from prefect_federated.adapters.torch.randomness import shared_generators

    found: list[bool] = []

    def look() -> None:
        found.append(shared_generators.acquire(blocking=False))
        if found[0]:
            shared_generators.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("prefect_api")
def test_a_job_in_threads_and_one_in_processes_give_the_same_model_bit_for_bit() -> None:
    parameters: dict[str, JsonValue] = {
        "executor": "tests.adapters.torch.noisy:noisy", "rounds": 2, "seed": 4,
        "config": {"threads": 1},
    }  # fmt: skip
    in_threads = simulate("fedavg", sites=3, threads=3, parameters=parameters)
    in_processes = simulate("fedavg", sites=3, processes=2, parameters=parameters)
    for name, array in in_threads.model.items():
        np.testing.assert_array_equal(array, in_processes.model[name], err_msg=name)
    assert in_threads.model["1.num_batches_tracked"] == 2 * 2 * 4
