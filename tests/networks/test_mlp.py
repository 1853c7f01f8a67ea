"""
Written-out networks against torch's own modules and derivatives.
"""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_trpo.networks.activations import ACTIVATIONS, activation_of
from sb3_trpo.networks.mlp import (
    ColumnMlp,
    LayerInputs,
    PlainMlp,
    to_columns,
    to_matrices,
    write_matrices_,
)

SIZES = [[5, 3], [5, 20, 3], [4, 7, 16, 17], [3, 18, 6, 18, 1]]


# Each class, and arguments that change what it computes.
MODULES: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: kind for kind in ACTIVATIONS},
    "ELU, alpha 0.3": lambda: nn.ELU(alpha=0.3),
    "ELU, alpha 0": lambda: nn.ELU(alpha=0.0),
    "ELU, negative alpha": lambda: nn.ELU(alpha=-0.7),
    "CELU, alpha 2": lambda: nn.CELU(alpha=2.0),
    "LeakyReLU, slope 0.2": lambda: nn.LeakyReLU(0.2),
    "LeakyReLU, negative slope": lambda: nn.LeakyReLU(-0.5),
    "GELU, tanh": lambda: nn.GELU(approximate="tanh"),
    "Hardtanh, other bounds": lambda: nn.Hardtanh(-0.2, 1.5),
    "Softplus, beta and threshold": lambda: nn.Softplus(beta=3.0, threshold=2.0),
    "in place": lambda: nn.LeakyReLU(0.1, inplace=True),
}
activation_names = st.sampled_from(list(MODULES))


def make_network(
    sizes: list[int],
    activations: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]] = nn.Tanh,
    dtype: th.dtype = th.float64,
) -> tuple[nn.Sequential, PlainMlp]:
    """
    Make a network of torch's, and the same written out.

    :param sizes: widths, from inputs to outputs
    :param activations: makes what is between the layers, or makes them one by one
    :param dtype: of the parameters
    :return: torch's network, and the same written out
    """
    with th.random.fork_rng():
        th.manual_seed(0)
        layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
    makers = [activations] * (len(layers) - 1) if callable(activations) else activations
    between = [make() for make in makers]
    modules = [layers[0], *(module for pair in zip(between, layers[1:], strict=True) for module in pair)]
    network = nn.Sequential(*modules).to(dtype)
    return network, PlainMlp(list(network.parameters()), [activation_of(module) for module in between])


def make_inputs(n: int, width: int, dtype: th.dtype = th.float64, seed: int = 1) -> th.Tensor:
    return 2.0 * th.randn(n, width, generator=th.Generator().manual_seed(seed), dtype=dtype)


def vjp(columns: ColumnMlp, inputs: LayerInputs, u: th.Tensor) -> list[th.Tensor]:
    out = [th.full_like(matrix, 7.0) for matrix in columns.matrices]
    columns.vjp(inputs, u, out=out)
    return out


@pytest.fixture(params=list(MODULES))
def activation(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    return MODULES[request.param]


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
def test_on_columns_it_is_the_same_network_to_rounding(activation, sizes, dtype, tolerance) -> None:
    network, mlp = make_network(sizes, activation, dtype)
    x = make_inputs(100, sizes[0], dtype)
    columns = mlp.on_columns()
    inputs = columns.layer_inputs(to_columns(x))
    with th.no_grad():
        for i, layer_input in enumerate(inputs.homogeneous):
            th.testing.assert_close(layer_input[:-1].t(), network[: 2 * i](x), rtol=0, atol=tolerance)
            assert th.equal(layer_input[-1], th.ones(100, dtype=dtype))
        outputs = columns.outputs(inputs).t()
        th.testing.assert_close(outputs, network(x), rtol=tolerance, atol=4 * tolerance)
        targets = make_inputs(100, sizes[-1], dtype, seed=2)
        error = columns.scaled_error(inputs, targets.t(), 0.5).t()
        th.testing.assert_close(error, 0.5 * (network(x) - targets), rtol=tolerance, atol=8 * tolerance)


def test_overwritten_inputs_are_those_of_the_other_samples(activation) -> None:
    columns = make_network(SIZES[3], activation)[1].on_columns()
    first, second = (to_columns(make_inputs(9, SIZES[3][0], seed=seed)) for seed in (1, 2))
    expected, reused = columns.layer_inputs(second), columns.layer_inputs(first)
    assert columns.layer_inputs(second, out=reused) is reused
    for name in ("homogeneous", "transposed"):
        assert all(map(th.equal, getattr(reused, name), getattr(expected, name)))
    u = make_inputs(9, 1, seed=3).t()
    assert all(map(th.equal, vjp(columns, reused, u), vjp(columns, expected, u)))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matrices_hold_the_parameters(sizes) -> None:
    _, mlp = make_network(sizes)
    copies = [th.empty_like(parameter) for parameter in mlp.parameters]
    write_matrices_(copies, to_matrices(mlp.parameters))
    assert all(map(th.equal, copies, mlp.parameters))


@pytest.mark.parametrize("value", [0.0, 1e-4, 20.0, -20.0, 1e30, -1e30, float("inf"), float("-inf")])
def test_activations_far_out(activation, value) -> None:
    module = activation()
    function = activation_of(module)
    x = th.tensor([value])
    expected = module(x.clone())
    assert th.equal(function.apply(x).nan_to_num(7.0), expected.nan_to_num(7.0))
    written = function.write(function.scale * x, th.empty(1))
    th.testing.assert_close(written, expected, rtol=1e-6, atol=2e-7, equal_nan=True)


def test_activations_keep_nan(activation) -> None:
    assert activation_of(activation()).write(th.tensor([float("nan")]), th.empty(1)).isnan()


@given(x=st.floats(-30.0, 30.0), c=st.floats(-3.0, 3.0), name=activation_names)
@settings(deadline=None, max_examples=200)
def test_a_derivative_is_that_of_autograd(x, c, name) -> None:
    module = MODULES[name]()
    function = activation_of(module)
    point = th.tensor([x], dtype=th.float64, requires_grad=True)
    (expected,) = th.autograd.grad(module(1.0 * point), point, th.tensor([c], dtype=th.float64))
    kept = th.tensor([function.scale * x], dtype=th.float64)
    if function.slope_ is None:
        function.write(kept, kept)
    else:
        function.slope_(kept)
    grad, out = th.tensor([c], dtype=th.float64), th.full((1,), 7.0, dtype=th.float64)
    function.backward(grad, kept, out)
    th.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    function.backward(grad, kept, grad)
    assert th.equal(grad, out)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), seed=st.integers(0, 1000), sizes=st.sampled_from(SIZES))
def test_derivatives_are_those_of_torch(data, seed, sizes) -> None:
    """Whatever follows each layer."""
    names = data.draw(st.lists(activation_names, min_size=len(sizes) - 2, max_size=len(sizes) - 2))
    network, mlp = make_network(sizes, [MODULES[name] for name in names])
    x = make_inputs(6, sizes[0], seed=seed)
    generator = th.Generator().manual_seed(seed)
    parameter_names = [name for name, _ in network.named_parameters()]
    tangents = [th.randn(p.shape, generator=generator, dtype=th.float64) for p in mlp.parameters]
    columns = mlp.on_columns()
    inputs = columns.layer_inputs(to_columns(x), with_tangents=True)

    def evaluate(*parameters: th.Tensor) -> th.Tensor:
        return th.func.functional_call(network, dict(zip(parameter_names, parameters, strict=True)), (x,))

    parameters = tuple(parameter.detach() for parameter in mlp.parameters)
    # Not in forward mode, which SELU and others do not have.
    _, expected = th.autograd.functional.jvp(evaluate, parameters, tuple(tangents))
    for _ in range(2):
        th.testing.assert_close(columns.jvp(inputs, tangents).t(), expected, rtol=1e-9, atol=1e-11)

    u = th.randn(expected.shape, generator=generator, dtype=th.float64)
    gradients, pieces = ([th.full_like(parameter, 7.0) for parameter in parameters] for _ in range(2))
    write_matrices_(gradients, vjp(columns, inputs, u.t()))
    columns.vjp_in_pieces(inputs, u.t(), out=pieces)
    for gradient, piece, expected_gradient in zip(
        gradients, pieces, th.func.vjp(evaluate, *parameters)[1](u), strict=True
    ):
        th.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-11)
        th.testing.assert_close(piece, expected_gradient, rtol=1e-9, atol=1e-11)


@settings(deadline=None, max_examples=30)
@given(names=st.lists(activation_names, min_size=3, max_size=3), step=st.integers(2, 4), is_used=st.booleans())
def test_every_kth_sample_has_the_derivatives_of_its_own(names, step, is_used) -> None:
    mlp = make_network(SIZES[3], [MODULES[name] for name in names])[1]
    columns, x, u = mlp.on_columns(), make_inputs(11, SIZES[3][0]), make_inputs(11, 1, seed=2).t()
    inputs = columns.layer_inputs(to_columns(x))
    if is_used:
        columns.backward(inputs, u)
    thinned = columns.backward(inputs.every(step), u[:, ::step])
    expected = columns.backward(columns.layer_inputs(to_columns(x[::step])), u[:, ::step])
    for gradient, expected_gradient in zip(thinned, expected, strict=True):
        th.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-13)


def test_forward_and_backward_products_are_adjoint(activation) -> None:
    """⟨u, J v⟩ = ⟨Jᵀu, v⟩."""
    mlp = make_network(SIZES[3], activation)[1]
    columns = mlp.on_columns()
    inputs = columns.layer_inputs(to_columns(make_inputs(9, SIZES[3][0])), with_tangents=True)
    generator = th.Generator().manual_seed(0)
    v = [th.randn(parameter.shape, generator=generator, dtype=th.float64) for parameter in mlp.parameters]
    u = th.randn(1, 9, generator=generator, dtype=th.float64)
    adjoint = sum(float((a * b).sum()) for a, b in zip(vjp(columns, inputs, u), to_matrices(v), strict=True))
    assert float((u * columns.jvp(inputs, v)).sum()) == pytest.approx(adjoint, rel=1e-12)


def test_gradients_of_each_layers_output(activation) -> None:
    network, mlp = make_network(SIZES[3], activation)
    x = make_inputs(9, SIZES[3][0])
    outputs, hidden = [], x
    for module in network:
        hidden = module(hidden.clone())  # or one in place would overwrite what went before
        if isinstance(module, nn.Linear):
            outputs.append(hidden)
    u = make_inputs(9, 1, seed=2)
    expected = th.autograd.grad(outputs[-1], outputs, u)
    columns = mlp.on_columns()
    gradients = columns.backward(columns.layer_inputs(to_columns(x)), u.t())
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        th.testing.assert_close(gradient.t(), expected_gradient, rtol=1e-10, atol=1e-12)


def test_inputs_are_left_alone(activation) -> None:
    _, mlp = make_network(SIZES[3], activation)
    x = make_inputs(9, SIZES[3][0])
    before = x.clone()
    columns = mlp.on_columns()
    inputs = columns.layer_inputs(to_columns(x), with_tangents=True)
    kept = [layer_input.clone() for layer_input in inputs.homogeneous]
    mlp.forward(x)
    columns.jvp(inputs, [th.ones_like(parameter) for parameter in mlp.parameters])
    vjp(columns, inputs, th.ones(1, 9).double())
    assert th.equal(x, before)
    assert all(map(th.equal, inputs.homogeneous, kept))


def test_follows_its_parameters() -> None:
    network, mlp = make_network(SIZES[1])
    x = make_inputs(9, SIZES[1][0])
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-1.5)
        assert th.equal(mlp.forward(x), network(x))
        columns = mlp.on_columns()
        th.testing.assert_close(columns.outputs(columns.layer_inputs(to_columns(x))).t(), network(x))


def test_on_columns_it_follows_its_matrices() -> None:
    network, mlp = make_network(SIZES[1], nn.ReLU)
    x = make_inputs(9, SIZES[1][0])
    columns = ColumnMlp(to_matrices(mlp.parameters), mlp.activations)
    inputs, u = columns.layer_inputs(to_columns(x)), make_inputs(9, SIZES[1][-1], seed=2)
    before = vjp(columns, inputs, u.t())
    with th.no_grad():
        for matrix in columns.matrices:
            matrix.mul_(2.0)
        for parameter in network.parameters():
            parameter.mul_(2.0)
        th.testing.assert_close(columns.outputs(columns.layer_inputs(to_columns(x))).t(), network(x))
    # Backward too: the gradient of the first layer comes through the weights of the second.
    assert th.allclose(vjp(columns, inputs, u.t())[0], 2.0 * before[0])


def test_records_no_graph() -> None:
    _, mlp = make_network(SIZES[1])
    x = make_inputs(9, SIZES[1][0])
    columns = mlp.on_columns()
    inputs = columns.layer_inputs(to_columns(x), with_tangents=True)
    tangents = [parameter.detach() for parameter in mlp.parameters]
    results = [mlp.forward(x), columns.outputs(inputs), columns.jvp(inputs, tangents)]
    assert not any(result.requires_grad for result in (*results, *inputs.homogeneous))
