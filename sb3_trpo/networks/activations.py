"""
Elementwise activations, with their derivatives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch as th
from torch import nn
from torch.nn import functional

_ATEN = th.ops.aten
_MINUS_ONE = th.tensor(-1.0)

# A function of a gradient with respect to y = f(x), of what is kept of the activation, and of a place for the result:
# the gradient with respect to x.
Backward: TypeAlias = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]


@dataclass(frozen=True)
class Activation:
    """
    An elementwise function and its derivative.

    Most derivatives follow from the result y = f(x), so that x need not be kept. Where they do not, f'(x) itself is
    kept: it is computed once, and every product with the Jacobian after that is a multiplication.

    :param apply: x -> f(x), bit for bit as the module computes it
    :param write: c x -> f(x) to rounding, into a place for the result, which may be that of c x
    :param backward: the product of a tensor with f'(x), from y, or from f'(x) where there is a ``slope_``, into a place
        for the result, which may be the tensor's; gradients go back that way, and tangents forward
    :param scale: c, which the matrix product before the activation supplies at no cost
    :param slope\\_: x -> f'(x) in place; None where y is enough
    """

    apply: Callable[[th.Tensor], th.Tensor]
    write: Callable[[th.Tensor, th.Tensor], th.Tensor]
    backward: Backward
    scale: float = 1.0
    slope_: Callable[[th.Tensor], th.Tensor] | None = None


def activation_of(module: nn.Module) -> Activation | None:
    """
    Give the activation that a module computes.

    :param module: a module of torch
    :return: the activation, with the module's arguments as they are now; None if the module is not a known one
    """
    make = ACTIVATIONS.get(type(module))
    return None if make is None else make(module)


def _write_tanh(x: th.Tensor, out: th.Tensor) -> th.Tensor:
    # tanh x = 2 sigmoid(2x) - 1, which takes a third of the time of torch's tanh on a CPU, to an error of 2e-7.
    return th.add(_MINUS_ONE, th.sigmoid(x, out=out), alpha=2.0, out=out)


_TANH = Activation(
    apply=th.tanh,
    write=_write_tanh,
    backward=lambda grad, y, out: _ATEN.tanh_backward.grad_input(grad, y, grad_input=out),
    scale=2.0,
)
_SIGMOID = Activation(
    apply=th.sigmoid,
    write=lambda x, out: th.sigmoid(x, out=out),
    backward=lambda grad, y, out: _ATEN.sigmoid_backward.grad_input(grad, y, grad_input=out),
)
_RELU = Activation(
    apply=th.relu,
    write=lambda x, out: th.clamp_min(x, 0.0, out=out),
    backward=lambda grad, y, out: _ATEN.threshold_backward.grad_input(grad, y, 0, grad_input=out),
)
_IDENTITY = Activation(
    apply=lambda x: x,
    write=lambda x, out: out if out is x else out.copy_(x),
    backward=lambda grad, y, out: out if out is grad else out.copy_(grad),
)


def _elu(alpha: float, scale: float = 1.0, input_scale: float = 1.0, *, module: Any) -> Activation:
    """
    Give s max(0, x) + s min(0, α (exp(c x) − 1)).

    :param alpha: α
    :param scale: s
    :param input_scale: c
    :param module: the module that computes it
    :return: the activation
    """
    coefficients = (alpha, scale, input_scale)
    apply = functional.selu if type(module) is nn.SELU else _elu_as_in(module)

    def write(x: th.Tensor, out: th.Tensor) -> th.Tensor:
        _ATEN.elu.out(x, *coefficients, out=out)
        return out

    if alpha >= 0.0:
        return Activation(
            apply,
            write,
            lambda grad, y, out: _ATEN.elu_backward.grad_input(grad, *coefficients, True, y, grad_input=out),
        )
    # With α < 0 two x have the same y.
    return _keeping_slope(
        apply,
        write,
        lambda one, x, out: _ATEN.elu_backward.grad_input(one, *coefficients, False, x, grad_input=out),
    )


def _elu_as_in(module: nn.ELU | nn.CELU) -> Callable[[th.Tensor], th.Tensor]:
    alpha, function = module.alpha, functional.celu if type(module) is nn.CELU else functional.elu
    return lambda x: function(x, alpha)


def _leaky_relu(negative_slope: float) -> Activation:
    def apply(x: th.Tensor) -> th.Tensor:
        return functional.leaky_relu(x, negative_slope)

    def write(x: th.Tensor, out: th.Tensor) -> th.Tensor:
        _ATEN.leaky_relu.out(x, negative_slope, out=out)
        return out

    is_told_by_result = negative_slope >= 0.0

    def backward(grad: th.Tensor, kept: th.Tensor, out: th.Tensor) -> th.Tensor:
        _ATEN.leaky_relu_backward.grad_input(grad, kept, negative_slope, is_told_by_result, grad_input=out)
        return out

    return Activation(apply, write, backward) if is_told_by_result else _keeping_slope(apply, write, backward)


def _hardtanh(low: float, high: float) -> Activation:
    return Activation(
        lambda x: functional.hardtanh(x, low, high),
        lambda x, out: _ATEN.hardtanh.out(x, low, high, out=out),
        # y is at a bound exactly where x is at or beyond it, and there the derivative is 0.
        lambda grad, y, out: _ATEN.hardtanh_backward.grad_input(grad, y, low, high, grad_input=out),
    )


def _gelu(approximate: str) -> Activation:
    return _keeping_slope(
        lambda x: functional.gelu(x, approximate=approximate),
        lambda x, out: _ATEN.gelu.out(x, approximate=approximate, out=out),
        lambda one, x, out: _ATEN.gelu_backward.grad_input(one, x, approximate=approximate, grad_input=out),
    )


def _softplus(beta: float, threshold: float) -> Activation:
    return _keeping_slope(
        lambda x: functional.softplus(x, beta, threshold),
        lambda x, out: _ATEN.softplus.out(x, beta, threshold, out=out),
        lambda one, x, out: _ATEN.softplus_backward.grad_input(one, x, beta, threshold, grad_input=out),
    )


def _keeping_slope(
    apply: Callable[[th.Tensor], th.Tensor],
    write: Callable[[th.Tensor, th.Tensor], th.Tensor],
    backward: Backward,
) -> Activation:
    """
    Give an activation whose derivative does not follow from its result.

    :param apply: ``Activation.apply``
    :param write: ``Activation.write``
    :param backward: the product of a tensor with f'(x), from x, into a place for the result
    :return: the activation, which keeps f'(x)
    """

    def slope_(x: th.Tensor) -> th.Tensor:
        return backward(x.new_ones(()).expand_as(x), x, x)

    return Activation(apply, write, lambda grad, slope, out: th.mul(grad, slope, out=out), slope_=slope_)


_SILU = _keeping_slope(
    functional.silu,
    lambda x, out: _ATEN.silu.out(x, out=out),
    lambda one, x, out: _ATEN.silu_backward.grad_input(one, x, grad_input=out),
)
_MISH = _keeping_slope(
    functional.mish,
    lambda x, out: _ATEN.mish.out(x, out=out),
    # The only one that torch can't write into a given place.
    lambda one, x, out: out.copy_(_ATEN.mish_backward(one, x)),
)
# As torch has them, to all digits of double precision.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

# By the module's class; a class derived from one of these may compute something else.
ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.Tanh: lambda _: _TANH,
    nn.Sigmoid: lambda _: _SIGMOID,
    nn.ReLU: lambda _: _RELU,
    nn.Identity: lambda _: _IDENTITY,
    nn.ELU: lambda module: _elu(module.alpha, module=module),
    nn.CELU: lambda module: _elu(module.alpha, 1.0, 1.0 / module.alpha, module=module),
    nn.SELU: lambda module: _elu(_SELU_ALPHA, _SELU_SCALE, module=module),
    nn.LeakyReLU: lambda module: _leaky_relu(module.negative_slope),
    nn.Hardtanh: lambda module: _hardtanh(module.min_val, module.max_val),
    nn.ReLU6: lambda _: _hardtanh(0.0, 6.0),
    nn.SiLU: lambda _: _SILU,
    nn.GELU: lambda module: _gelu(module.approximate),
    nn.Mish: lambda _: _MISH,
    nn.Softplus: lambda module: _softplus(module.beta, module.threshold),
}
