"""
The linearisation of any policy, by autograd.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.flat import FlatParameters, as_dense, as_real
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.linearization import LayerPass, Linearization
from sb3_trpo.trust_region.shared_switches import NO_CUDNN, SharedSwitches


class GraphLinearization(Linearization):
    """
    The linearisation of any policy, by autograd.

    J v does not take forward mode, which few operations of torch have: g(w) = Jᵀw is linear in w, so that the gradient
    of ⟨g(w), v⟩ in w is J v. The graph of g is built once, at the first product. Where an operation has no second
    derivative (``EmbeddingBag``), J v is a central difference instead.

    :param distribution_of: a function that evaluates the policy
    :param policy: the module in which ``distribution_of`` finds its parameters
    :param parameters: θ; None is every trainable parameter that z turns out to depend on
    """

    def __init__(
        self, distribution_of: Callable[[], Distribution], policy: nn.Module, parameters: FlatParameters | None = None
    ) -> None:
        with use_twice_differentiable_kernels(policy), _Recorder(policy) as calls:
            distribution = distribution_of()
        self._z = family_and_z(distribution)[1]
        super().__init__(distribution, parameters or FlatParameters(parameters_behind(self._z, policy.parameters())))
        self._distribution_of = distribution_of
        self._policy = policy
        self._calls = calls
        self._w: list[th.Tensor] = []
        # The elements of g that depend on w, by their position in θ, and real.
        self._g: list[tuple[int, th.Tensor]] = []
        self._has_second_derivative = True

    def gradient(self, objective: th.Tensor) -> th.Tensor:
        """Differentiate through the policy's graph, which is kept."""
        return self._flat(th.autograd.grad(objective, self.parameters.tensors, retain_graph=True, allow_unused=True))

    def jvp(self, v: th.Tensor) -> DistributionParameters:
        """Multiply by J: exactly where every operation has a second derivative, else by a central difference."""
        if self._has_second_derivative:
            try:
                return self._exact_jvp(v)
            except th.OutOfMemoryError:
                raise
            except RuntimeError:
                # 1. torch has no type of error for an operation without a second derivative.
                # 2. What has another cause comes up again, for the difference evaluates the policy anew.
                self._has_second_derivative = False
        return self._difference(v)

    def _exact_jvp(self, v: th.Tensor) -> DistributionParameters:
        if not self._w:
            w = [th.zeros_like(z, requires_grad=True) for z in self._z]
            g = self._backward(self.parameters.tensors, w, create_graph=True)
            self._g = [(i, as_real(g_i)) for i, g_i in enumerate(g) if g_i is not None and g_i.requires_grad]
            # What is marked as ``once_differentiable`` cuts the graph with a node that raises only if it is reached,
            # as it never is on the way to w.
            if any(node.name() == "torch::autograd::Error" for node in _nodes_behind([g_i for _, g_i in self._g])):
                raise RuntimeError("an operation in the policy can be differentiated once only")
            self._w = w
        tangents = self.parameters.split(v)
        product = th.autograd.grad(
            [g_i for _, g_i in self._g],
            self._w,
            [tangents[i].to(g_i.dtype) for i, g_i in self._g],
            retain_graph=True,
            allow_unused=True,
        )
        return tuple(th.zeros_like(w) if p is None else p for w, p in zip(self._w, product, strict=True))

    def _difference(self, v: th.Tensor) -> DistributionParameters:
        """
        Approximate J v by (z(θ + εv) − z(θ − εv)) / 2ε.

        :param v: the direction, (P,)
        :return: J v, to about two thirds of the digits of z
        """
        theta = self.parameters.vector()
        norm = float(v.norm())
        if norm == 0.0:
            return tuple(th.zeros_like(z) for z in self.z)
        # With ε ∝ ∛(machine epsilon) the errors of rounding, ∝ 1/ε, and of curvature, ∝ ε², are of the same size.
        epsilon = th.finfo(self.z[0].dtype).eps ** (1 / 3) * (1.0 + float(theta.norm())) / norm
        above = self._z_at(theta.add(v, alpha=epsilon))
        below = self._z_at(theta.sub(v, alpha=epsilon))
        return tuple((a - b) / (2.0 * epsilon) for a, b in zip(above, below, strict=True))

    @th.no_grad()
    def _z_at(self, theta: th.Tensor) -> DistributionParameters:
        before = [tensor.detach().clone() for tensor in self.parameters]
        try:
            for tensor, values in zip(self.parameters, self.parameters.split(theta), strict=True):
                # Through ``data``, for the graph is still needed: any other write would make autograd refuse to go
                # through what was computed from the parameter before, although it is put back.
                as_real(tensor.data).copy_(values)
            with use_twice_differentiable_kernels(self._policy):
                return family_and_z(self._distribution_of())[1]
        finally:
            for tensor, values in zip(self.parameters, before, strict=True):
                tensor.data.copy_(values)

    def vjp(self, u: DistributionParameters) -> th.Tensor:
        """Multiply by Jᵀ, by one backward pass."""
        return self._flat(self._backward(self.parameters.tensors, u))

    def vjp_pieces(self, u: DistributionParameters, positions: Sequence[int]) -> list[th.Tensor]:
        """Multiply by the rows of Jᵀ that belong to the chosen parameters."""
        chosen = [self.parameters.tensors[i] for i in positions]
        pieces = self._backward(chosen, u)
        return [as_real(th.zeros_like(p) if piece is None else piece) for p, piece in zip(chosen, pieces, strict=True)]

    def layer_passes(self, u: DistributionParameters, every: int = 1, first: int = 0) -> Iterator[LayerPass]:
        """Go through the layers that were recorded; all states count, for leaving some out would save no time."""
        own = {id(parameter) for parameter in self.parameters}
        uses = Counter(id(parameter) for call in self._calls for parameter in call.layer.parameters(recurse=False))
        once = [
            (call, call.output)
            for call in self._calls
            if call.output is not None
            and id(call.layer.weight) in own
            and all(uses[id(parameter)] == 1 for parameter in call.layer.parameters(recurse=False))
        ]
        if not once:
            return
        cotangents = self._backward([output for _, output in once], u)
        for (call, _), cotangent in zip(once, cotangents, strict=True):
            if cotangent is not None:
                bias = call.layer.bias if id(call.layer.bias) in own else None
                convolution = call.layer if isinstance(call.layer, nn.Conv2d) else None
                yield LayerPass(call.layer.weight, bias, convolution, call.inputs.detach(), cotangent, len(self))

    def _backward(
        self, inputs: Sequence[th.Tensor] | Sequence[GradientEdge], u: Sequence[th.Tensor], create_graph: bool = False
    ) -> Sequence[th.Tensor | None]:
        """
        Propagate u backward.

        :param inputs: parameters, or other places in the graph of z
        :param u: the vector to propagate, shaped as z
        :param create_graph: whether the result is to be differentiable
        :return: the gradient of u · z with respect to each of the inputs; None where there is none
        """
        pairs = [(z, u_z) for z, u_z in zip(self._z, u, strict=True) if z.requires_grad]
        gradients: Sequence[th.Tensor | None] = th.autograd.grad(
            [z for z, _ in pairs],
            inputs,
            [u_z for _, u_z in pairs],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
        return [None if gradient is None else as_dense(gradient) for gradient in gradients]

    def _flat(self, gradients: Sequence[th.Tensor | None]) -> th.Tensor:
        return self.parameters.flatten_gradients(gradients)


def parameters_behind(tensors: Sequence[th.Tensor], candidates: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """
    Find the parameters that a result depends on, whatever their names.

    :param tensors: results of a computation that autograd has recorded
    :param candidates: parameters that may have taken part in it
    :return: those that did, in the order of the candidates
    """
    # Only the nodes that accumulate into a leaf have this attribute.
    leaves = {id(getattr(node, "variable", None)) for node in _nodes_behind(tensors)}
    return [candidate for candidate in candidates if id(candidate) in leaves]


def _nodes_behind(tensors: Sequence[th.Tensor]) -> Iterator[Node]:
    """
    Walk through autograd's graph.

    :param tensors: results of a computation that autograd has recorded
    :return: each node of it, once
    """
    seen: set[Node] = set()
    nodes = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            yield node
            nodes += [parent for parent, _ in node.next_functions if parent is not None]


_NOT_FUSED = SharedSwitches(lambda: th.compiler.set_stance("force_eager"), lambda: sdpa_kernel(SDPBackend.MATH))


@contextlib.contextmanager
def use_twice_differentiable_kernels(policy: nn.Module) -> Iterator[None]:
    """
    Make what the policy computes differentiable twice.

    What ``torch.compile`` makes of a module is not, nor is fused attention, nor are cuDNN's recurrent layers, which in
    evaluation mode cannot be differentiated even once. For any other module nothing changes.

    :param policy: the policy that is evaluated in the block
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_NOT_FUSED.hold())
        if any(isinstance(module, nn.RNNBase) for module in policy.modules()):
            stack.enter_context(NO_CUDNN.hold())
        yield


@dataclass(frozen=True)
class _Call:
    """
    One call of a layer.

    :param layer: the layer that was called
    :param inputs: what entered it
    :param output: the place in autograd's graph where its output arose, which an activation in place, unlike the tensor
        itself, leaves as it is; None if there is no gradient
    """

    layer: nn.Linear | nn.Conv2d
    inputs: th.Tensor
    output: GradientEdge | None


class _Recorder:
    """
    A context in which each call of a linear layer or convolution is noted.

    :param policy: the module whose layers are noted
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

    def _note(
        self,
        layer: nn.Linear | nn.Conv2d,
        args: tuple[th.Tensor, ...],
        kwargs: dict[str, th.Tensor],
        output: th.Tensor,
    ) -> None:
        edge = get_gradient_edge(output) if output.requires_grad else None
        self._calls.append(_Call(layer, args[0] if args else kwargs["input"], edge))


def _has_kronecker_factors(layer: nn.Module) -> bool:
    """
    Tell whether the gradient of a layer's weight is the product of what enters and what comes back.

    :param layer: any module
    :return: whether it is a linear layer, or a convolution whose patches ``unfold`` gives
    """
    if isinstance(layer, nn.Conv2d):
        return (
            type(layer).forward is nn.Conv2d.forward
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
