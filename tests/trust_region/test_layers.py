"""
Layers of every kind in the actor: F is the definition's, the preconditioner is positive definite, and no layer gets a
Kronecker block that it has not earned.
"""

import threading
from collections.abc import Callable

import pytest
import torch as th
from sample_policies import as_matrix, explicit_fisher, linearize, make_observations, make_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.utils import parametrizations

from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.graph_linearization import use_twice_differentiable_kernels
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.preconditioner import kronecker_preconditioner

N_STATES = 5
WIDTH = 4


def without_units(n_inputs: int, n_outputs: int) -> nn.Linear:
    """Make a layer without weights; torch's own initialisation warns of that, and leaves none of the bias."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
    nn.init.ones_(layer.bias)
    return layer


class Function(nn.Module):
    """
    A layer of a user's.

    :param function: of the module and its inputs, (N, 4)
    :param modules: and parameters, by name
    """

    def __init__(self, function: Callable[..., th.Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.function(self, x)


class Scaled(nn.Linear):
    """A linear layer that does something else."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return 2.0 * super().forward(x) ** 2


class Square(th.autograd.Function):
    """A square whose derivative is to be taken once only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2.0 * ctx.saved_tensors[0] * grad


def parameter(*shape: int, dtype: th.dtype = th.float64) -> nn.Parameter:
    return nn.Parameter(th.randn(shape, dtype=dtype, generator=th.Generator().manual_seed(0)))


def branches(self: nn.Module, x: th.Tensor) -> th.Tensor:
    """Choose experts so that the second one gets no sample."""
    out = self.first(x)
    chosen = th.zeros(len(x), dtype=th.bool)
    return out.index_put((chosen,), self.second(x[chosen]))


def some_rows(self: nn.Module, x: th.Tensor) -> th.Tensor:
    return x.index_put((th.tensor([0, 3]),), self.layer(x[[0, 3]]))


def image(x: th.Tensor) -> th.Tensor:
    return x.view(-1, 1, 2, 2).repeat(1, 2, 1, 1)


def changed_output(module: nn.Module, args: object, output: th.Tensor) -> th.Tensor:
    return output[:, :WIDTH].contiguous()


def hooked() -> nn.Module:
    layer = nn.Linear(WIDTH, 2 * WIDTH)
    layer.register_forward_hook(changed_output)
    return layer


def index(x: th.Tensor) -> th.Tensor:
    return (3 * x).long().clamp(-4, 4) + 4


# Layers from 4 features to 4; and whether their weights have a Kronecker block.
LAYERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "linear": (lambda: nn.Linear(4, 4), True),
    "linear without bias": (lambda: nn.Linear(4, 4, bias=False), True),
    "linear of one vector": (
        lambda: Function(lambda s, x: x * s.layer(s.code), layer=nn.Linear(3, 4), code=parameter(3)),
        True,
    ),
    "linear of some rows": (lambda: Function(some_rows, layer=nn.Linear(4, 4)), True),
    "linear of tokens": (
        lambda: Function(lambda s, x: s.layer(x.view(-1, 2, 2)).flatten(1), layer=nn.Linear(2, 2)),
        True,
    ),
    "linear that is called twice": (
        lambda: Function(lambda s, x: s.layer(th.tanh(s.layer(x))), layer=nn.Linear(4, 4)),
        False,
    ),
    "linear with a forward of its own": (lambda: Scaled(4, 4), False),
    "linear with no inputs": (lambda: Function(lambda s, x: x + s.layer(x[:, :0]), layer=nn.Linear(0, 4)), False),
    "linear with a hook": (hooked, False),
    "branch without samples": (lambda: Function(branches, first=nn.Linear(4, 4), second=nn.Linear(4, 4)), True),
    "convolution": (lambda: Function(lambda s, x: s.conv(image(x)).flatten(1), conv=nn.Conv2d(2, 4, 2)), True),
    "convolution of one image": (
        lambda: Function(lambda s, x: x * s.conv(s.code).flatten(), conv=nn.Conv2d(2, 4, 2), code=parameter(2, 2, 2)),
        True,
    ),
    "grouped convolution": (
        lambda: Function(lambda s, x: s.conv(image(x)).flatten(1), conv=nn.Conv2d(2, 4, 2, groups=2)),
        False,
    ),
    "padding by name": (
        lambda: Function(lambda s, x: s.conv(image(x)).flatten(1), conv=nn.Conv2d(2, 1, 3, padding="same")),
        False,
    ),
    "circular padding": (
        lambda: Function(
            lambda s, x: s.conv(image(x)).flatten(1), conv=nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular")
        ),
        False,
    ),
    "transposed convolution": (
        lambda: Function(lambda s, x: s.conv(x[:, :, None, None]).flatten(1), conv=nn.ConvTranspose2d(4, 1, 2)),
        False,
    ),
    "one dimension": (lambda: Function(lambda s, x: s.conv(x.unsqueeze(1)).flatten(1), conv=nn.Conv1d(1, 2, 3)), False),
    "three dimensions": (
        lambda: Function(lambda s, x: s.conv(x.view(-1, 1, 1, 2, 2)).flatten(1), conv=nn.Conv3d(1, 4, (1, 2, 2))),
        False,
    ),
    "embedding": (lambda: Function(lambda s, x: x + s.table(index(x)).mean(dim=1), table=nn.Embedding(9, 4)), False),
    "sparse embedding": (
        lambda: Function(lambda s, x: x + s.table(index(x)).mean(dim=1), table=nn.Embedding(9, 4, sparse=True)),
        False,
    ),
    "bag of embeddings": (lambda: Function(lambda s, x: x + s.table(index(x)), table=nn.EmbeddingBag(9, 4)), False),
    "differentiable once": (lambda: Function(lambda s, x: Square.apply(s.layer(x)), layer=nn.Linear(4, 4)), True),
    "bilinear": (lambda: Function(lambda s, x: s.layer(x[:, :2], x[:, 2:]), layer=nn.Bilinear(2, 2, 4)), False),
    "attention": (
        lambda: Function(
            lambda s, x: s.heads(*(3 * [x.view(-1, 2, 2)]), need_weights=False)[0].flatten(1),
            heads=nn.MultiheadAttention(2, 1, batch_first=True),
        ),
        False,
    ),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), False),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), False),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), False),
    "batch norm": (lambda: nn.BatchNorm1d(4), False),
    "layer norm": (lambda: nn.LayerNorm(4), False),
    "complex weights": (
        lambda: Function(
            lambda s, x: th.fft.irfft(th.fft.rfft(x) * s.filter, n=4), filter=parameter(3, dtype=th.complex128)
        ),
        False,
    ),
    "a complex bias, conjugated": (
        lambda: Function(lambda s, x: x * (s.bias.conj() * (2.0 + 1.0j)).real, bias=parameter(4, dtype=th.complex128)),
        False,
    ),
    "a number": (lambda: Function(lambda s, x: x * s.scale, scale=parameter()), False),
    "no units": (
        lambda: Function(
            lambda s, x: x + s.out(s.into(x)),
            into=without_units(4, 0),
            out=without_units(0, 4),
        ),
        False,
    ),
    "nothing": (lambda: Function(lambda s, x: x + s.empty.sum(), empty=parameter(0)), False),
}
WITHOUT_SECOND_DERIVATIVE = ("bag of embeddings", "differentiable once")


def policy_with(layer: nn.Module) -> ActorCriticPolicy:
    """
    Make a policy with a layer between others.

    :param layer: from 4 features to 4
    :return: a policy with this layer between others
    """
    policy = make_policy(net_arch=[WIDTH])
    policy.mlp_extractor.policy_net.append(layer.double().eval())
    return policy


@pytest.fixture(params=list(LAYERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_fisher_is_the_definitions(name: str) -> None:
    with th.random.fork_rng():
        th.manual_seed(0)
        policy = policy_with(LAYERS[name][0]())
    obs = make_observations(policy, N_STATES)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    linearization = linearize(policy, obs)
    fisher = Fisher(Linearizations(lambda _: linearization, [None]))
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    expected = explicit_fisher(policy, obs, fisher.parameters.tensors)
    # A difference has two thirds of the digits.
    tolerance = 1e-6 if name in WITHOUT_SECOND_DERIVATIVE else 1e-9
    th.testing.assert_close(matrix, expected, rtol=1e3 * tolerance, atol=tolerance * float(expected.abs().max()))
    assert all(th.equal(before[key], value) for key, value in policy.state_dict().items())


def test_preconditioner_is_positive_definite(name: str) -> None:
    policy = policy_with(LAYERS[name][0]())
    linearization = linearize(policy, make_observations(policy, N_STATES))
    matrix = as_matrix(kronecker_preconditioner(linearization, 0.1), len(linearization.parameters))
    th.testing.assert_close(matrix, matrix.t())
    values = th.linalg.eigvalsh(matrix)
    assert 0.0 < values.min() <= values.max() < 10.0 * (1.0 + 1e-9)


def test_which_weights_have_a_block(name: str) -> None:
    """A weight without one has a multiple of the identity."""
    make, has_block = LAYERS[name]
    policy = policy_with(make())
    layer = policy.mlp_extractor.policy_net[-1]
    linearization = linearize(policy, make_observations(policy, N_STATES))
    parameters = linearization.parameters
    matrix = as_matrix(kronecker_preconditioner(linearization, 0.1), len(parameters))
    places = dict(zip(parameters, parameters.split(th.arange(len(parameters))), strict=True))
    own = {id(tensor) for tensor in layer.parameters()}
    weights = [place.flatten() for tensor, place in places.items() if id(tensor) in own and place.numel() > 1]
    blocks = [matrix[place][:, place] for place in weights]
    are_multiples = [th.equal(block, block[0, 0] * th.eye(len(block), dtype=th.float64)) for block in blocks]
    assert has_block is not all(are_multiples)


def test_mixed_precision() -> None:
    """θ is of the higher one; each layer's own is what goes through it."""
    policy = make_policy(net_arch=[4], dtype=th.float32)
    double = nn.Linear(4, 4).double()
    policy.mlp_extractor.policy_net.append(Function(lambda s, x: s.layer(x.double()).float(), layer=double))
    linearization = linearize(policy, make_observations(policy, N_STATES))
    v = linearization.parameters.vector()
    assert v.dtype is th.float64
    fisher = Fisher(Linearizations(lambda _: linearization, [None]))
    v = th.randn(len(v), dtype=th.float64, generator=th.Generator().manual_seed(0))
    w = fisher @ v
    assert float(v.dot(w)) > 0.0
    solution = kronecker_preconditioner(linearization, 0.1)(v)
    assert float(solution.dot(v)) > 0.0
    linearization.parameters.write_(linearization.parameters.vector())
    assert double.weight.dtype is th.float64


def test_half_precision() -> None:
    policy = make_policy(net_arch=[4], dtype=th.bfloat16)
    linearization = linearize(policy, make_observations(policy, N_STATES))
    v = linearization.parameters.vector()
    assert kronecker_preconditioner(linearization, 0.1)(v).isfinite().all()


def test_a_difference_leaves_what_autograd_needs() -> None:
    """Products from the left go on after it, and what is not finite is told by the result."""
    policy = policy_with(LAYERS["bag of embeddings"][0]())
    linearization = linearize(policy, make_observations(policy, N_STATES))
    u = tuple(map(th.ones_like, linearization.z))
    before = linearization.vjp(u)
    v = th.ones(len(linearization.parameters), dtype=th.float64)
    linearization.jvp(v)
    assert th.equal(linearization.vjp(u), before)
    assert all((part == 0.0).all() for part in linearization.jvp(0.0 * v))


def test_threads_leave_torchs_switches_as_they_were() -> None:
    """The first to come is not the last to go."""
    attention = nn.LSTM(2, 2)
    before = (th.backends.cuda.flash_sdp_enabled(), th.backends.cudnn.enabled)
    entered, left = threading.Event(), threading.Event()

    def overlap() -> None:
        with use_twice_differentiable_kernels(attention):
            entered.set()
            left.wait()

    thread = threading.Thread(target=overlap)
    with use_twice_differentiable_kernels(attention):
        thread.start()
        entered.wait()
    left.set()
    thread.join()
    assert (th.backends.cuda.flash_sdp_enabled(), th.backends.cudnn.enabled) == before
