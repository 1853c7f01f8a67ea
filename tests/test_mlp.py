"""
Written-out networks against torch's own modules and derivatives.
"""

import itertools

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_trpo.mlp import ACTIVATIONS, NARROW, PlainMlp

# Wide and narrow layers, which take different ways through the matrix library.
SIZES = [[5, 3], [5, NARROW + 4, 3], [4, 7, NARROW, NARROW + 1], [3, NARROW + 2, 6, NARROW + 2, 1]]


def make_network(sizes: list[int], activation: type[nn.Module] = nn.Tanh, dtype: th.dtype = th.float64):
    """
    :param sizes: widths, from inputs to outputs
    :param activation: between the layers
    :param dtype: of the parameters
    :return: torch's network, and the same written out
    """
    with th.random.fork_rng():
        th.manual_seed(0)
        layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
    modules = [module for layer in layers for module in (layer, activation())][:-1]
    network = nn.Sequential(*modules).to(dtype)
    return network, PlainMlp(list(network.parameters()), [ACTIVATIONS[activation]] * (len(layers) - 1))


def make_inputs(n: int, width: int, dtype: th.dtype = th.float64, seed: int = 1) -> th.Tensor:
    return 2.0 * th.randn(n, width, generator=th.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=list(ACTIVATIONS), ids=lambda activation: activation.__name__)
def activation(request: pytest.FixtureRequest) -> type[nn.Module]:
    return request.param


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("n", [1, 8, 2048])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_forward_is_the_networks_own_bit_for_bit(activation, sizes, n, dtype) -> None:
    network, mlp = make_network(sizes, activation, dtype)
    x = make_inputs(n, sizes[0], dtype)
    with th.no_grad():
        assert th.equal(mlp.forward(x), network(x))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float32, 1e-6), (th.float64, 1e-14)])
def test_layer_inputs_are_the_activations_to_rounding(activation, sizes, dtype, tolerance) -> None:
    network, mlp = make_network(sizes, activation, dtype)
    x = make_inputs(100, sizes[0], dtype)
    inputs = mlp.layer_inputs(x)
    assert inputs[0] is x
    with th.no_grad():
        for i, layer_input in enumerate(inputs):
            th.testing.assert_close(layer_input, network[: 2 * i](x), rtol=0, atol=tolerance)
        th.testing.assert_close(mlp.last_layer(inputs[-1]), network(x), rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("value", [0.0, 1e-4, 20.0, -20.0, 1e30, -1e30, float("inf"), float("-inf")])
def test_activations_far_out(activation, value) -> None:
    function = ACTIVATIONS[activation]
    x = th.tensor([value])
    expected = activation()(x)
    assert th.equal(function.apply(x), expected)
    th.testing.assert_close(function.apply_(function.scale * x), expected, rtol=0, atol=2e-7)


def test_activations_keep_nan(activation) -> None:
    assert ACTIVATIONS[activation].apply_(th.tensor([float("nan")])).isnan()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), sizes=st.sampled_from(SIZES), kind=st.sampled_from(list(ACTIVATIONS)))
def test_derivatives_are_those_of_torch(seed, sizes, kind) -> None:
    network, mlp = make_network(sizes, kind)
    x = make_inputs(6, sizes[0], seed=seed)
    generator = th.Generator().manual_seed(seed)
    names = [name for name, _ in network.named_parameters()]
    tangents = [th.randn(p.shape, generator=generator, dtype=th.float64) for p in mlp.parameters]
    inputs = mlp.layer_inputs(x)

    def evaluate(*parameters: th.Tensor) -> th.Tensor:
        return th.func.functional_call(network, dict(zip(names, parameters, strict=True)), (x,))

    parameters = tuple(parameter.detach() for parameter in mlp.parameters)
    _, expected = th.func.jvp(evaluate, parameters, tuple(tangents))
    th.testing.assert_close(mlp.jvp(inputs, tangents), expected, rtol=1e-10, atol=1e-12)

    u = th.randn(expected.shape, generator=generator, dtype=th.float64)
    gradients = [th.full_like(parameter, 7.0) for parameter in parameters]
    mlp.vjp(inputs, u, out=gradients)
    for gradient, expected_gradient in zip(gradients, th.func.vjp(evaluate, *parameters)[1](u), strict=True):
        th.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_forward_and_backward_products_are_adjoint(activation) -> None:
    """⟨u, J v⟩ = ⟨Jᵀu, v⟩."""
    _, mlp = make_network(SIZES[3], activation)
    inputs = mlp.layer_inputs(make_inputs(9, SIZES[3][0]))
    generator = th.Generator().manual_seed(0)
    v = [th.randn(p.shape, generator=generator, dtype=th.float64) for p in mlp.parameters]
    u = th.randn(9, 1, generator=generator, dtype=th.float64)
    gradient = [th.empty_like(p) for p in v]
    mlp.vjp(inputs, u, out=gradient)
    adjoint = sum(float((a * b).sum()) for a, b in zip(gradient, v, strict=True))
    assert float((u * mlp.jvp(inputs, v)).sum()) == pytest.approx(adjoint, rel=1e-12)


def test_gradients_of_each_layers_output(activation) -> None:
    network, mlp = make_network(SIZES[3], activation)
    x = make_inputs(9, SIZES[3][0])
    outputs, hidden = [], x
    for module in network:
        hidden = module(hidden)
        if isinstance(module, nn.Linear):
            outputs.append(hidden)
    u = make_inputs(9, 1, seed=2)
    expected = th.autograd.grad(outputs[-1], outputs, u)
    for gradient, expected_gradient in zip(mlp.backward(mlp.layer_inputs(x), u), expected, strict=True):
        th.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_inputs_are_left_alone(activation) -> None:
    _, mlp = make_network(SIZES[3], activation)
    x = make_inputs(9, SIZES[3][0])
    before = x.clone()
    inputs = mlp.layer_inputs(x)
    kept = [layer_input.clone() for layer_input in inputs]
    mlp.forward(x)
    mlp.jvp(inputs, [th.ones_like(p) for p in mlp.parameters])
    mlp.vjp(inputs, th.ones(9, 1).double(), out=[th.empty_like(p) for p in mlp.parameters])
    assert th.equal(x, before)
    assert all(map(th.equal, inputs, kept))


def test_follows_its_parameters() -> None:
    network, mlp = make_network(SIZES[1])
    x = make_inputs(9, SIZES[1][0])
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-1.5)
        assert th.equal(mlp.forward(x), network(x))
        th.testing.assert_close(mlp.last_layer(mlp.layer_inputs(x)[-1]), network(x))


def test_same_form_with_other_parameters() -> None:
    network, mlp = make_network(SIZES[1], nn.ReLU)
    x = make_inputs(9, SIZES[1][0])
    other = mlp.with_parameters([2.0 * parameter for parameter in mlp.parameters])
    with th.no_grad():
        before = mlp.forward(x)
        for parameter in network.parameters():
            parameter.mul_(2.0)
        assert th.equal(other.forward(x), network(x))
    assert not th.equal(before, other.forward(x))


def test_records_no_graph() -> None:
    _, mlp = make_network(SIZES[1])
    inputs = mlp.layer_inputs(make_inputs(9, SIZES[1][0]))
    tangents = [th.ones_like(parameter) for parameter in mlp.parameters]
    results = [mlp.forward(inputs[0]), mlp.last_layer(inputs[-1]), mlp.jvp(inputs, [t.detach() for t in tangents])]
    assert not any(result.requires_grad for result in (*results, *inputs))
