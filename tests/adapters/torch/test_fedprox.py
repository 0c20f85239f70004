"""FedProx against the closed form, and against plain training where it must be the same."""

from pathlib import Path

import torch
from torch import Tensor, nn

from prefect_federated.adapters.torch.fedprox import proximal
from tests.adapters.torch.linear import LINEAR, START, assert_bits, assert_close, site, steps


def test_one_full_batch_step_of_mu_is_the_plain_step_since_it_starts_at_the_model(
    tmp_path: Path,
) -> None:
    plain = steps(START, 1, lambda w: {name: 0 * w[name] for name in w})
    assert_close(LINEAR.train(START, site(tmp_path, mu=0.7)).tensors, plain)


def test_each_step_adds_mu_times_the_way_from_the_received_model(tmp_path: Path) -> None:
    mu = 0.7
    by_hand = steps(START, 4, lambda w: {name: mu * (w[name] - START[name]) for name in w})
    assert_close(LINEAR.train(START, site(tmp_path, mu=mu, epochs=4)).tensors, by_hand)


def test_mu_0_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    plain = LINEAR.train(START, site(tmp_path, epochs=4, batch_size=7))
    assert_bits(
        LINEAR.train(START, site(tmp_path, epochs=4, batch_size=7, mu=0)).tensors, plain.tensors
    )


def test_a_parameter_that_the_loss_does_not_know_is_drawn_back_all_the_same() -> None:
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    correct = proximal([used, unused], mu=0.5)
    assert correct is not None
    with torch.no_grad():
        unused.add_(4)
    used.sum().backward()  # type: ignore[no-untyped-call]
    correct()
    assert torch.equal(_gradient(used), torch.ones(2))
    assert torch.equal(_gradient(unused), torch.full((2,), 0.5 * 4))


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
