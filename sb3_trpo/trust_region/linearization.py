"""
The distribution parameters z(θ) of a batch of states, linearised at the current θ.

Everything that TRPO needs to know about the policy's networks are the products of the Jacobian J = ∂z/∂θ with vectors,
from either side: the surrogate's gradient is one Jᵀu, a Fisher-vector product one Jv and one Jᵀu, the Kronecker factors
one Jᵀu. ``GraphLinearization`` takes them from autograd, for any policy; ``MlpLinearization`` has them written out.
"""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from sb3_trpo.networks.mlp import PlainMlp, to_columns
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kl import Parameters, family_of


@dataclass(frozen=True)
class LayerPass:
    """
    What went through a linear layer or convolution, forward and backward.

    :param weight: the layer's, (m, ...)
    :param bias: the layer's, (m,), or None if it is not among the parameters
    :param convolution: the layer, if it is one
    :param inputs: what entered it, (N, ..., n) or, for a convolution, (N, channels, height, width)
    :param cotangents: gradient with respect to what left it, (N, ..., m) or (N, m, height, width)
    """

    weight: th.Tensor
    bias: th.Tensor | None
    convolution: nn.Conv2d | None
    inputs: th.Tensor
    cotangents: th.Tensor


class Linearization(ABC):
    """
    :param distribution: π(·|s) for a batch of states, differentiable
    :param parameters: θ
    """

    def __init__(self, distribution: Distribution, parameters: FlatParameters) -> None:
        # A policy uses one distribution object for everything, and sets it anew at each evaluation.
        self.distribution = copy.copy(distribution)
        self.family = family_of(distribution)
        self.parameters = parameters
        # z, each (N, ·)
        self.z: Parameters = tuple(tensor.detach() for tensor in self.family.parameters(distribution.distribution))

    def __len__(self) -> int:
        return len(self.z[0])

    @abstractmethod
    def gradient(self, objective: th.Tensor) -> th.Tensor:
        """
        :param objective: a scalar computed from ``distribution``
        :return: its gradient in θ, (P,)
        """

    @abstractmethod
    def jvp(self, v: th.Tensor) -> Parameters:
        """
        :param v: (P,)
        :return: J v, shaped as z
        """

    @abstractmethod
    def vjp(self, u: Parameters) -> th.Tensor:
        """
        :param u: shaped as z
        :return: Jᵀ u, (P,)
        """

    @abstractmethod
    def vjp_pieces(self, u: Parameters, positions: Sequence[int]) -> list[th.Tensor]:
        """
        :param u: shaped as z
        :param positions: of parameters in θ, at least one
        :return: what Jᵀ u has for these parameters, shaped as they are
        """

    @abstractmethod
    def layer_passes(self, u: Parameters, every: int = 1) -> Iterator[LayerPass]:
        """
        :param u: shaped as z, to be propagated backward
        :param every: k; only every k-th state is wanted, if leaving out the others saves time
        :return: the layers whose weights are among the parameters and that were called exactly once; no two of them
            share a parameter
        """


class GraphLinearization(Linearization):
    """
    Any policy, by autograd.

    J v without forward mode: g(w) = Jᵀw is linear in w, so that the gradient of ⟨g(w), v⟩ in w is J v. The graph of g
    is built once, at the first product.

    :param distribution_of: evaluates the policy
    :param policy: the module in which ``distribution_of`` finds its parameters
    :param parameters: θ; None is every trainable parameter that z turns out to depend on
    """

    def __init__(
        self, distribution_of: Callable[[], Distribution], policy: nn.Module, parameters: FlatParameters | None = None
    ) -> None:
        with twice_differentiable(policy), _Recorder(policy) as calls:
            distribution = distribution_of()
        if parameters is None:
            z = family_of(distribution).parameters(distribution.distribution)
            parameters = FlatParameters(parameters_behind(z, policy.parameters()))
        super().__init__(distribution, parameters)
        self._calls = calls
        self._z = self.family.parameters(distribution.distribution)
        self._w: list[th.Tensor] = []
        self._g: list[tuple[int, th.Tensor]] = []

    def gradient(self, objective: th.Tensor) -> th.Tensor:
        return self._flat(th.autograd.grad(objective, self.parameters.parameters, retain_graph=True, allow_unused=True))

    def jvp(self, v: th.Tensor) -> Parameters:
        if not self._w:
            self._w = [th.zeros_like(z, requires_grad=True) for z in self._z]
            g = self._backward(self.parameters.parameters, self._w, create_graph=True)
            self._g = [(i, g_i) for i, g_i in enumerate(g) if g_i is not None and g_i.requires_grad]
        tangents = self.parameters.split(v)
        product = th.autograd.grad(
            [g_i for _, g_i in self._g],
            self._w,
            [tangents[i] for i, _ in self._g],
            retain_graph=True,
            allow_unused=True,
        )
        return tuple(th.zeros_like(w) if p is None else p for w, p in zip(self._w, product, strict=True))

    def vjp(self, u: Parameters) -> th.Tensor:
        return self._flat(self._backward(self.parameters.parameters, u))

    def vjp_pieces(self, u: Parameters, positions: Sequence[int]) -> list[th.Tensor]:
        chosen = [self.parameters.parameters[i] for i in positions]
        pieces = self._backward(chosen, u)
        return [th.zeros_like(p) if piece is None else piece for p, piece in zip(chosen, pieces, strict=True)]

    def layer_passes(self, u: Parameters, every: int = 1) -> Iterator[LayerPass]:
        own = {id(parameter) for parameter in self.parameters}
        uses = Counter(id(parameter) for call in self._calls for parameter in call.layer.parameters(recurse=False))
        once = [
            call
            for call in self._calls
            if call.output is not None
            and id(call.layer.weight) in own
            and all(uses[id(parameter)] == 1 for parameter in call.layer.parameters(recurse=False))
        ]
        if not once:
            return
        cotangents = self._backward([call.output for call in once], u)
        for call, cotangent in zip(once, cotangents, strict=True):
            if cotangent is not None:
                bias = call.layer.bias if id(call.layer.bias) in own else None
                convolution = call.layer if isinstance(call.layer, nn.Conv2d) else None
                yield LayerPass(call.layer.weight, bias, convolution, call.inputs.detach(), cotangent)

    def _backward(self, inputs: Sequence[Any], u: Sequence[th.Tensor], create_graph: bool = False) -> Any:
        pairs = [(z, u_z) for z, u_z in zip(self._z, u, strict=True) if z.requires_grad]
        return th.autograd.grad(
            [z for z, _ in pairs],
            inputs,
            [u_z for _, u_z in pairs],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )

    def _flat(self, gradients: Sequence[th.Tensor | None]) -> th.Tensor:
        return self.parameters.flatten_gradients(gradients)


class MlpLinearization(Linearization):
    """
    A plain network that gives mean actions or logits, with or without a state-independent log σ.

    θ is the network's parameters, then log σ. Logits count as the network gives them, before torch normalises them: J v
    may differ by a shift of all logits of an action, to which the metric is blind (M 1 = 0, 1ᵀM = 0).

    :param mlp: the network
    :param features: its inputs, (N, n_in)
    :param distribution_of: maps the network's outputs to an action distribution, differentiably
    :param parameters: θ
    :param log_std: log σ, (action dimensions,), or None
    """

    def __init__(
        self,
        mlp: PlainMlp,
        features: th.Tensor,
        distribution_of: Callable[[th.Tensor], Distribution],
        parameters: FlatParameters,
        log_std: nn.Parameter | None,
    ) -> None:
        self._layers = mlp.parameters
        self._mlp = mlp.on_columns()
        self._log_std = log_std
        with th.no_grad():
            self._inputs = self._mlp.layer_inputs(to_columns(features), with_tangents=True)
            self._outputs = self._mlp.outputs(self._inputs).t()
        self._outputs.requires_grad_()
        super().__init__(distribution_of(self._outputs), parameters)

    def gradient(self, objective: th.Tensor) -> th.Tensor:
        leaves = [self._outputs] if self._log_std is None else [self._outputs, self._log_std]
        on_outputs, *on_log_std = th.autograd.grad(objective, leaves, retain_graph=True)
        return self._pull_back(on_outputs, on_log_std)

    @th.no_grad()
    def jvp(self, v: th.Tensor) -> Parameters:
        tangents = self.parameters.split(v)
        on_outputs = self._mlp.jvp(self._inputs, tangents[: len(self._layers)]).t()
        return (on_outputs,) if self._log_std is None else (on_outputs, self.z[1] * tangents[-1])

    @th.no_grad()
    def vjp(self, u: Parameters) -> th.Tensor:
        return self._pull_back(u[0], [] if self._log_std is None else [self._on_log_std(u)])

    @th.no_grad()
    def vjp_pieces(self, u: Parameters, positions: Sequence[int]) -> list[th.Tensor]:
        if list(positions) == [len(self._layers)]:
            # log σ alone, which needs no pass through the network.
            return [self._on_log_std(u)]
        pieces = self.parameters.split(self.vjp(u))
        return [pieces[i] for i in positions]

    def _on_log_std(self, u: Parameters) -> th.Tensor:
        return (u[1] * self.z[1]).sum(dim=0)

    @th.no_grad()
    def layer_passes(self, u: Parameters, every: int = 1) -> Iterator[LayerPass]:
        inputs = self._inputs.every(every)
        for i, cotangents in enumerate(self._mlp.backward(inputs, u[0][::every].t())):
            weight, bias = self._layers[2 * i : 2 * i + 2]
            yield LayerPass(weight, bias, None, inputs.transposed[i][:, :-1], cotangents.t())

    @th.no_grad()
    def _pull_back(self, on_outputs: th.Tensor, on_log_std: Sequence[th.Tensor]) -> th.Tensor:
        gradient = th.empty(len(self.parameters), dtype=on_outputs.dtype, device=on_outputs.device)
        pieces = self.parameters.split(gradient)
        self._mlp.vjp_in_pieces(self._inputs, on_outputs.t(), out=pieces)
        for piece, value in zip(pieces[len(self._layers) :], on_log_std, strict=True):
            piece.copy_(value)
        return gradient


class Linearizations:
    """
    The linearisations of the chunks of a batch. One is kept; several are made anew each time, to bound the memory.

    :param linearize: makes the linearisation of a chunk
    :param chunks: the batch, in chunks
    """

    def __init__(self, linearize: Callable[[Any], Linearization], chunks: Sequence[Any]) -> None:
        self._linearize = linearize
        self.chunks = chunks
        self._kept: Linearization | None = None

    def __iter__(self) -> Iterator[Linearization]:
        if len(self.chunks) > 1:
            yield from map(self._linearize, self.chunks)
        else:
            yield self.first()

    def first(self) -> Linearization:
        """
        :return: the first chunk's linearisation
        """
        if self._kept is not None:
            return self._kept
        first = self._linearize(self.chunks[0])
        if len(self.chunks) == 1:
            self._kept = first
        return first


def parameters_behind(tensors: Sequence[th.Tensor], candidates: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """
    :param tensors: results of a computation that autograd has recorded
    :param candidates: parameters that may have taken part in it
    :return: those that did, in the order of the candidates
    """
    seen: set[Any] = set()
    leaves: set[int] = set()
    nodes = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        # Only the nodes that accumulate into a leaf have this attribute.
        leaves.add(id(getattr(node, "variable", None)))
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return [candidate for candidate in candidates if id(candidate) in leaves]


@contextlib.contextmanager
def twice_differentiable(policy: nn.Module) -> Iterator[None]:
    """
    While it is open, what the policy computes can be differentiated twice: neither what ``torch.compile`` makes of a
    module nor fused attention can be, nor cuDNN's recurrent layers, in evaluation mode not even once. For any other
    module nothing changes.

    :param policy: which may have such modules
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(th.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in policy.modules()):
            stack.enter_context(th.backends.cudnn.flags(enabled=False))
        yield


@dataclass(frozen=True)
class _Call:
    """
    :param layer: that was called
    :param inputs: what entered it
    :param output: the place in autograd's graph where its output arose, which an activation in place, unlike the tensor
        itself, leaves as it is; None if there is no gradient
    """

    layer: nn.Linear | nn.Conv2d
    inputs: th.Tensor
    output: GradientEdge | None


class _Recorder:
    """
    Notes what goes through each linear layer and convolution while it is open.

    :param policy: where to look for layers
    """

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy
        self._handles: list[RemovableHandle] = []
        self._calls: list[_Call] = []

    def __enter__(self) -> list[_Call]:
        layers = [layer for layer in self._policy.modules() if _has_kronecker_factors(layer)]
        self._handles = [layer.register_forward_hook(self._note, with_kwargs=True) for layer in layers]
        return self._calls

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, layer: Any, args: tuple[th.Tensor, ...], kwargs: dict[str, th.Tensor], output: th.Tensor) -> None:
        edge = get_gradient_edge(output) if output.requires_grad else None
        self._calls.append(_Call(layer, args[0] if args else kwargs["input"], edge))


def _has_kronecker_factors(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)
