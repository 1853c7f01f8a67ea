"""
Plain multilayer perceptrons, with their derivatives written out.

Most policies that people train are small fully connected networks, for which calling autograd costs more than the
matrix products themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch as th
from torch import nn

# A product whose result has many rows and fewer columns than this takes half the time the other way round: matrix
# libraries work along the rows' direction.
NARROW = 16


@dataclass(frozen=True)
class Activation:
    """
    An elementwise function whose derivative can be read off its output, so that the input need not be kept.

    :param apply: x -> f(x), as the module of this name computes it
    :param apply_: c x -> f(x) in place, to rounding
    :param scale: c, which the matrix product before it supplies at no cost
    :param backward: from a gradient with respect to y = f(x), and y, the gradient with respect to x; as this is a
        multiplication by f'(x), it carries tangents forward just as well
    """

    apply: Callable[[th.Tensor], th.Tensor]
    apply_: Callable[[th.Tensor], th.Tensor]
    scale: float
    backward: Callable[[th.Tensor, th.Tensor], th.Tensor]


_MINUS_ONE = th.tensor(-1.0)


def _tanh_of_half_(x: th.Tensor) -> th.Tensor:
    # tanh x = 2 sigmoid(2x) - 1, which takes a third of the time of torch's tanh on a CPU, to an error of 2e-7.
    return th.add(_MINUS_ONE, x.sigmoid_(), alpha=2.0, out=x)


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation(th.tanh, _tanh_of_half_, 2.0, th.ops.aten.tanh_backward.default),
    nn.Sigmoid: Activation(th.sigmoid, th.sigmoid_, 1.0, th.ops.aten.sigmoid_backward.default),
    nn.ReLU: Activation(th.relu, th.relu_, 1.0, lambda grad, y: th.ops.aten.threshold_backward.default(grad, y, 0)),
}


class PlainMlp:
    """
    Linear layers with an elementwise activation between each two of them.

    :param parameters: weight (m, n) and bias (m,) of each layer in turn; the network follows them when they are changed
        in place
    :param activations: what follows each layer but the last
    """

    def __init__(self, parameters: Sequence[th.Tensor], activations: Sequence[Activation]) -> None:
        assert len(parameters) == 2 * len(activations) + 2
        self.parameters = tuple(parameters)
        self.weights = tuple(weight.detach() for weight in self.parameters[::2])
        self.biases = tuple(bias.detach() for bias in self.parameters[1::2])
        self._transposed = tuple(weight.t() for weight in self.weights)
        self.activations = tuple(activations)

    def with_parameters(self, parameters: Sequence[th.Tensor]) -> "PlainMlp":
        """
        :param parameters: shaped as this network's
        :return: a network of the same form
        """
        return PlainMlp(parameters, self.activations)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        The network as SB3 evaluates it, bit for bit.

        :param x: inputs, (N, n_in)
        :return: outputs, (N, n_out)
        """
        for i, activation in enumerate(self.activations):
            x = activation.apply(th.addmm(self.biases[i], x, self._transposed[i]))
        return th.addmm(self.biases[-1], x, self._transposed[-1])

    def layer_inputs(self, x: th.Tensor) -> list[th.Tensor]:
        """
        The same, faster, up to rounding.

        :param x: inputs, (N, n_in)
        :return: what enters each layer: the inputs, then each activation's output
        """
        inputs = [x]
        for i, activation in enumerate(self.activations):
            c = activation.scale
            scaled = th.addmm(self.biases[i], inputs[i], self._transposed[i], beta=c, alpha=c)
            inputs.append(activation.apply_(scaled))
        return inputs

    def last_layer(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: the last of ``layer_inputs``
        :return: outputs, (N, n_out)
        """
        return _linear(x, self.weights[-1], self.biases[-1])

    def scaled_error(self, x: th.Tensor, targets: th.Tensor, scale: float) -> th.Tensor:
        """
        :param x: the last of ``layer_inputs``
        :param targets: (N, n_out)
        :param scale: c
        :return: c (outputs − targets), (N, n_out)
        """
        return _linear(x, self.weights[-1], self.biases[-1] - targets, scale)

    def jvp(self, inputs: Sequence[th.Tensor], tangents: Sequence[th.Tensor]) -> th.Tensor:
        """
        Directional derivative of the outputs: J v.

        :param inputs: ``layer_inputs`` of the point
        :param tangents: v, shaped as ``parameters``
        :return: (N, n_out)
        """
        out = _linear(inputs[0], tangents[0], tangents[1])
        for i, activation in enumerate(self.activations, start=1):
            weight_tangent, bias_tangent = tangents[2 * i], tangents[2 * i + 1]
            hidden = activation.backward(out, inputs[i])
            out = _linear(inputs[i], weight_tangent, bias_tangent)
            out = _linear(hidden, self.weights[i], out)
        return out

    def backward(self, inputs: Sequence[th.Tensor], grad: th.Tensor) -> list[th.Tensor]:
        """
        Gradients with respect to each layer's output.

        :param inputs: ``layer_inputs`` of the point
        :param grad: gradient with respect to the last layer's, (N, n_out)
        :return: first layer to last, each (N, the layer's width)
        """
        grads = [grad]
        for i in range(len(self.activations), 0, -1):
            grads.append(self.activations[i - 1].backward(grads[-1].mm(self.weights[i]), inputs[i]))
        return grads[::-1]

    def vjp(self, inputs: Sequence[th.Tensor], grad: th.Tensor, out: Sequence[th.Tensor]) -> None:
        """
        Gradient with respect to the parameters: Jᵀ u.

        :param inputs: ``layer_inputs`` of the point
        :param grad: u, (N, n_out)
        :param out: where the result goes, shaped as ``parameters``
        """
        for i, grad_i in enumerate(self.backward(inputs, grad)):
            th.mm(grad_i.t(), inputs[i], out=out[2 * i])
            th.sum(grad_i, dim=0, out=out[2 * i + 1])


def _linear(x: th.Tensor, weight: th.Tensor, addend: th.Tensor, scale: float = 1.0) -> th.Tensor:
    """
    :param x: (N, n)
    :param weight: (m, n)
    :param addend: a bias (m,), or (N, m)
    :param scale: c, at no cost
    :return: c (x weightᵀ + addend), (N, m)
    """
    if len(weight) >= NARROW:
        return th.addmm(addend, x, weight.t(), beta=scale, alpha=scale)
    transposed = addend.unsqueeze(1) if addend.dim() == 1 else addend.t()
    return th.addmm(transposed, weight, x.t(), beta=scale, alpha=scale).t()
