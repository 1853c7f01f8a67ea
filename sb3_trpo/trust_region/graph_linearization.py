"""
The linearisation of any policy, by autograd.
"""

import contextlib
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

from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kl import Parameters, family_of
from sb3_trpo.trust_region.linearization import LayerPass, Linearization


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
