"""
Parameters as one vector, and back.
"""

import pytest
import torch as th
from sample_policies import make_policy
from torch import nn

from sb3_trpo.trust_region.flat import FlatParameters, flatten


@pytest.fixture
def parameters() -> FlatParameters:
    generator = th.Generator().manual_seed(0)
    shapes = [(3, 2), (3,), (), (1, 2, 2), (1,)]
    return FlatParameters([nn.Parameter(th.randn(shape, generator=generator)) for shape in shapes])


def test_round_trip_is_bit_for_bit(parameters) -> None:
    before = [parameter.detach().clone() for parameter in parameters]
    vector = parameters.vector()
    assert vector.shape == (len(parameters),) == (15,)
    parameters.write_(th.full_like(vector, 7.0))
    assert all((parameter == 7.0).all() for parameter in parameters)
    parameters.write_(vector)
    assert all(map(th.equal, parameters, before))


def test_written_in_place(parameters) -> None:
    storage = [(parameter.data_ptr(), id(parameter)) for parameter in parameters]
    parameters.write_(th.zeros(len(parameters)))
    assert [(parameter.data_ptr(), id(parameter)) for parameter in parameters] == storage
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in parameters)


def test_vector_is_a_copy(parameters) -> None:
    vector = parameters.vector()
    assert not vector.requires_grad
    before = vector.clone()
    parameters.write_(vector + 1.0)
    assert th.equal(vector, before)


def test_order_is_that_of_the_parameters(parameters) -> None:
    vector = parameters.vector()
    pieces = parameters.split(vector)
    assert all(map(th.equal, pieces, parameters))
    # Views: what is written into a piece is in the vector.
    pieces[0].zero_()
    assert (vector[:6] == 0.0).all()
    assert th.equal(flatten(pieces), vector)


def test_gradients_that_are_missing_are_zero(parameters) -> None:
    loss = 2.0 * parameters.tensors[0].sum() + parameters.tensors[2]
    gradients = th.autograd.grad(loss, parameters.tensors, allow_unused=True)
    flat = parameters.flatten_gradients(gradients)
    assert flat.tolist() == [2.0] * 6 + [0.0] * 3 + [1.0] + [0.0] * 5


def test_non_contiguous_gradients(parameters) -> None:
    gradients = [th.arange(6.0).view(2, 3).t(), *(th.zeros_like(p) for p in parameters.tensors[1:])]
    assert parameters.flatten_gradients(gradients)[:6].tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]


def test_size_must_match(parameters) -> None:
    with pytest.raises(RuntimeError):
        parameters.write_(th.zeros(len(parameters) + 1))


def test_of_a_policy() -> None:
    policy = make_policy()
    parameters = FlatParameters(list(policy.parameters()))
    assert len(parameters) == sum(parameter.numel() for parameter in policy.parameters())
    assert parameters.vector().dtype == th.float64
