"""
Plain multilayer perceptrons, with their derivatives written out.

Most policies that people train are small fully connected networks, for which calling autograd costs more than the
matrix products themselves.
"""

from collections.abc import Sequence

import torch as th

from sb3_trpo.networks.activations import Activation


class PlainMlp:
    """
    Linear layers with an elementwise activation between each two of them.

    :param parameters: weight (m, n) and bias (m,) of each layer in turn; the network follows them when they are changed
        in place
    :param activations: the activation after each layer but the last
    """

    def __init__(self, parameters: Sequence[th.Tensor], activations: Sequence[Activation]) -> None:
        assert len(parameters) == 2 * len(activations) + 2
        self.parameters = tuple(parameters)
        self._biases = tuple(bias.detach() for bias in self.parameters[1::2])
        self._transposed = tuple(weight.detach().t() for weight in self.parameters[::2])
        self.activations = tuple(activations)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Evaluate the network, bit for bit as SB3 does.

        :param x: the inputs, (N, n_in)
        :return: the outputs, (N, n_out)
        """
        return self.outputs(self.latent(x))

    def latent(self, x: th.Tensor) -> th.Tensor:
        """
        Evaluate the network up to the inputs of its last layer, bit for bit as SB3 does.

        :param x: the inputs, (N, n_in)
        :return: the latent, as SB3 calls it, (N, n)
        """
        for i, activation in enumerate(self.activations):
            x = activation.apply(th.addmm(self._biases[i], x, self._transposed[i]))
        return x

    def outputs(self, latent: th.Tensor) -> th.Tensor:
        """
        Evaluate the last layer, bit for bit as SB3 does.

        :param latent: the inputs of the last layer, (N, n)
        :return: the outputs, (N, n_out)
        """
        return th.addmm(self._biases[-1], latent, self._transposed[-1])

    def on_columns(self) -> "ColumnMlp":
        """
        Give the network, with its parameters as they are now, in the form that knows its derivatives.

        :return: the network on columns
        """
        return ColumnMlp(to_matrices(self.parameters), self.activations)


class LayerInputs:
    """
    What enters the layers of a network on columns, and what the derivatives of its activations follow from.

    The views that derivatives need are made once.

    :param columns: [x; 1], (n_in + 1, N)
    :param widths: the width of each layer but the last
    :param activations: the activation after each layer but the last
    :param with_tangents: whether there is a place for tangents, below what they belong to
    """

    def __init__(
        self,
        columns: th.Tensor,
        widths: Sequence[int],
        activations: Sequence[Activation],
        with_tangents: bool = False,
    ) -> None:
        n_samples = columns.shape[1]
        # [f(M_i h_{i-1}); 1] or [f(M_i h_{i-1}); 1; tangent] of each layer but the last.
        self.stacked = [columns.new_empty(width + 1 + width * with_tangents, n_samples) for width in widths]
        for matrix, width in zip(self.stacked, widths, strict=True):
            matrix[width] = 1.0
        self.tangents = [matrix[width + 1 :] for matrix, width in zip(self.stacked, widths, strict=True)]
        self.homogeneous = [columns, *(matrix[: width + 1] for matrix, width in zip(self.stacked, widths, strict=True))]
        self.transposed = [matrix.t() for matrix in self.homogeneous]
        # Without the ones.
        self.hidden = [matrix[:-1] for matrix in self.homogeneous]
        self._activations = activations
        # M_i h_{i-1}, in the place of the activation's result where the derivative follows from that.
        self.arguments = [
            hidden if activation.slope_ is None else th.empty_like(hidden)
            for hidden, activation in zip(self.hidden[1:], activations, strict=True)
        ]
        self._has_slope = [activation.slope_ is None for activation in activations]

    def replace(self, columns: th.Tensor) -> None:
        """
        Take other inputs; what enters the layers is then computed anew by ``ColumnMlp.layer_inputs``.

        :param columns: [x; 1] of as many samples, (n_in + 1, N)
        """
        self.homogeneous[0], self.transposed[0] = columns, columns.t()
        self._has_slope = [activation.slope_ is None for activation in self._activations]

    def kept(self, i: int) -> th.Tensor:
        """
        Give what the derivative of an activation follows from.

        :param i: the number of the activation
        :return: its result or, where that is not enough, f'(x), (width, N)
        """
        if not self._has_slope[i]:
            # f'(x) takes the place of x, at the first request: a forward pass alone needs no derivative.
            slope_ = self._activations[i].slope_
            assert slope_ is not None
            slope_(self.arguments[i])
            self._has_slope[i] = True
        return self.arguments[i]

    def every(self, step: int, first: int = 0) -> "LayerInputs":
        """
        Give every k-th column, without a place for tangents.

        :param step: k
        :param first: the place of the first of them, below k
        :return: a copy; for k = 1 this object itself
        """
        if step == 1:
            return self
        columns, *hidden = [matrix[:, first::step] for matrix in self.homogeneous]
        thinned = LayerInputs(columns.contiguous(), [len(matrix) - 1 for matrix in hidden], self._activations)
        for place, matrix in zip(thinned.stacked, hidden, strict=True):
            place.copy_(matrix)
        for i, activation in enumerate(self._activations):
            if activation.slope_ is not None:
                thinned.arguments[i].copy_(self.kept(i)[:, first::step])
                thinned._has_slope[i] = True
        return thinned


class ColumnMlp:
    """
    A plain network on columns, one for each sample.

    The columns end with a 1, so that weight and bias are one matrix:

        h_0 = [x; 1],  h_i = [f(M_i h_{i-1}); 1],  output = M_L h_{L-1},  M_i = [W_i b_i].

    A layer is one matrix product, its gradient another, with nothing to add for the bias. Matrix libraries work fastest
    along rows that are long and contiguous. Here these are the samples, however narrow the layer.

    :param matrices: M of each layer, (m, n + 1); the network follows them when they are changed in place
    :param activations: the activation after each layer but the last
    """

    def __init__(self, matrices: Sequence[th.Tensor], activations: Sequence[Activation]) -> None:
        assert len(matrices) == len(activations) + 1
        self.matrices = tuple(matrices)
        self.activations = tuple(activations)
        self._weights = tuple(matrix[:, :-1] for matrix in matrices)
        self._weights_transposed = tuple(weight.t() for weight in self._weights)

    def layer_inputs(
        self, columns: th.Tensor, out: LayerInputs | None = None, with_tangents: bool = False
    ) -> LayerInputs:
        """
        Evaluate the network up to the inputs of its last layer.

        :param columns: [x; 1], (n_in + 1, N)
        :param out: the layer inputs of as many columns, which are overwritten; None makes new ones
        :param with_tangents: whether new ones get a place for ``jvp``
        :return: what enters each layer
        """
        if out is None:
            widths = [len(matrix) for matrix in self.matrices[:-1]]
            out = LayerInputs(columns, widths, self.activations, with_tangents)
        else:
            out.replace(columns)
        for i, activation in enumerate(self.activations):
            place = out.arguments[i]
            th.addmm(place, self.matrices[i], out.homogeneous[i], beta=0.0, alpha=activation.scale, out=place)
            activation.write(place, out.hidden[i + 1])
        return out

    def outputs(self, inputs: LayerInputs) -> th.Tensor:
        """
        Evaluate the last layer.

        :param inputs: what ``layer_inputs`` gave
        :return: the outputs, (n_out, N)
        """
        return self.matrices[-1].mm(inputs.homogeneous[-1])

    def scaled_error(self, inputs: LayerInputs, targets: th.Tensor, scale: float) -> th.Tensor:
        """
        Evaluate the last layer, less targets.

        :param inputs: what ``layer_inputs`` gave
        :param targets: the targets, (n_out, N)
        :param scale: c
        :return: c (outputs − targets), (n_out, N)
        """
        return th.addmm(targets, self.matrices[-1], inputs.homogeneous[-1], beta=-scale, alpha=scale)

    def jvp(self, inputs: LayerInputs, tangents: Sequence[th.Tensor]) -> th.Tensor:
        """
        Compute the directional derivative of the outputs, J v.

        A layer's own tangent and what comes up from below, M_i' h_{i-1} + W_i h_{i-1}', are one matrix product
        [M_i' W_i] [h_{i-1}; h_{i-1}'].

        :param inputs: what ``layer_inputs`` gave at the point, with a place for tangents
        :param tangents: v, weight (m, n) and bias (m,) of each layer in turn
        :return: J v, (n_out, N)
        """
        out = to_matrices(tangents[:2])[0].mm(inputs.homogeneous[0])
        for i, activation in enumerate(self.activations):
            activation.backward(out, inputs.kept(i), inputs.tangents[i])
            weight, bias = tangents[2 * i + 2 : 2 * i + 4]
            out = th.cat([weight, bias.unsqueeze(1), self._weights[i + 1]], dim=1).mm(inputs.stacked[i])
        return out

    def backward(self, inputs: LayerInputs, grad: th.Tensor, on_latent: th.Tensor | None = None) -> list[th.Tensor]:
        """
        Propagate a gradient back to each layer's output.

        :param inputs: what ``layer_inputs`` gave at the point
        :param grad: the gradient with respect to the last layer's output, (n_out, N)
        :param on_latent: the gradient with respect to what enters the last layer, in another way than through that
            layer, (n, N)
        :return: the gradients, from the first layer to the last, each (the layer's width, N)
        """
        grads = [grad]
        for i in range(len(self.activations), 0, -1):
            on_hidden = self._weights_transposed[i].mm(grads[-1])
            if on_latent is not None and i == len(self.activations):
                on_hidden.add_(on_latent)
            grads.append(self.activations[i - 1].backward(on_hidden, inputs.kept(i - 1), on_hidden))
        return grads[::-1]

    def vjp(self, inputs: LayerInputs, grad: th.Tensor, out: Sequence[th.Tensor]) -> None:
        """
        Compute the gradient with respect to the matrices, Jᵀ u.

        :param inputs: what ``layer_inputs`` gave at the point
        :param grad: u, (n_out, N)
        :param out: the tensors to write the result into, shaped as ``matrices``
        """
        for grad_i, input_i, out_i in zip(self.backward(inputs, grad), inputs.transposed, out, strict=True):
            th.mm(grad_i, input_i, out=out_i)

    def vjp_in_pieces(
        self,
        inputs: LayerInputs,
        grad: th.Tensor,
        out: Sequence[th.Tensor],
        on_latent: th.Tensor | None = None,
    ) -> None:
        """
        Compute Jᵀ u, with weights and biases apart.

        For many samples this is faster: a matrix product into 64 columns takes a fifth less than one into 65. For few
        it is slower, for it takes twice as many calls.

        :param inputs: what ``layer_inputs`` gave at the point
        :param grad: u, (n_out, N)
        :param out: the tensors to write the result into, weight (m, n) and bias (m,) of each layer in turn
        :param on_latent: the gradient with respect to what enters the last layer, as for ``backward``
        """
        for i, grad_i in enumerate(self.backward(inputs, grad, on_latent)):
            th.mm(grad_i, inputs.transposed[i][:, :-1], out=out[2 * i])
            th.sum(grad_i, dim=1, out=out[2 * i + 1])


def to_matrices(pieces: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    Join the weight and the bias of each layer.

    :param pieces: weight (m, n) and bias (m,) of each layer in turn, or tensors shaped as these
    :return: a copy in the form of a matrix [W b] for each layer, (m, n + 1)
    """
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    return [th.cat([weight.detach(), bias.detach().unsqueeze(1)], dim=1) for weight, bias in pairs]


@th.no_grad()
def write_matrices_(pieces: Sequence[th.Tensor], matrices: Sequence[th.Tensor]) -> None:
    """
    Write matrices back into weights and biases: the reverse of ``to_matrices``.

    :param pieces: the tensors to write into, weight (m, n) and bias (m,) of each layer in turn
    :param matrices: a matrix [W b] for each layer, (m, n + 1)
    """
    for weight, bias, matrix in zip(pieces[::2], pieces[1::2], matrices, strict=True):
        weight.copy_(matrix[:, :-1])
        bias.copy_(matrix[:, -1])


def to_columns(x: th.Tensor) -> th.Tensor:
    """
    Turn rows into columns with a last row of ones.

    :param x: the rows, (N, n)
    :return: [xᵀ; 1], (n + 1, N)
    """
    return th.cat([x.t(), x.new_ones(1, len(x))])
