"""
What went through a layer, in rows: one for each time that its weight was multiplied with something.
"""

import math
from dataclasses import dataclass

import torch as th
from torch.nn.functional import unfold

from sb3_trpo.ranks.alone import Share
from sb3_trpo.trust_region.linearization import LayerPass

# Of very many rows some stand for all: of a layer's inputs at most this many elements are taken.
MAX_FACTOR_ELEMENTS = 2**23


@dataclass(frozen=True)
class LayerSamples:
    """
    What went through a layer, sample by sample.

    :param layer: the layer
    :param inputs: what entered it, (S, ...); with the leading axis that counts the samples, which need not be states
    :param cotangents: the gradient in what left it, (S, ...)
    :param n_positions: the number of rows of a sample: positions of a convolution, tokens, or 1
    """

    layer: LayerPass
    inputs: th.Tensor
    cotangents: th.Tensor
    n_positions: int

    def __len__(self) -> int:
        return len(self.inputs)

    @classmethod
    def of(cls, layer: LayerPass) -> "LayerSamples | None":
        """
        Find the samples of a layer's pass.

        :param layer: what went through the layer
        :return: the samples; None if no sample went through the layer, it has no unit, or a hook of the user's has
            changed what left it
        """
        fan_out, fan_in = len(layer.weight), math.prod(layer.weight.shape[1:])
        inputs, cotangents = layer.inputs, layer.cotangents
        if layer.convolution is not None:
            # One image may come without an axis for it.
            inputs, cotangents = (x.unsqueeze(0) if x.dim() == 3 else x for x in (inputs, cotangents))
        elif inputs.dim() == 1:
            inputs, cotangents = inputs.unsqueeze(0), cotangents.unsqueeze(0)
        is_pair = len(cotangents) == len(inputs) and cotangents.shape[1 if layer.convolution else -1] == fan_out
        if inputs.numel() == 0 or fan_out == 0 or not is_pair:
            return None
        n_positions = cotangents[0].numel() // fan_out
        if layer.convolution is None and inputs[0].numel() != n_positions * fan_in:
            return None
        return cls(layer, inputs, cotangents, n_positions)

    def thinning(self, share: Share) -> int:
        """
        Choose which samples to take: neighbours are alike, as in a rollout.

        :param share: which of all samples these are
        :return: k; every k-th of all, the least k that is enough
        """
        fan_in = math.prod(self.layer.weight.shape[1:])
        max_samples = max(1, MAX_FACTOR_ELEMENTS // max(1, fan_in * self.n_positions))
        return -(-share.total // max_samples)

    def rows(self, taken: slice) -> tuple[th.Tensor, th.Tensor]:
        """
        Bring samples into rows.

        :param taken: the samples to take
        :return: inputs (R, n) and cotangents (R, m)
        """
        layer, inputs, cotangents = self.layer, self.inputs[taken], self.cotangents[taken]
        if layer.convolution is not None:
            conv = layer.convolution
            assert not isinstance(conv.padding, str)
            patches = unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
            inputs = patches.transpose(1, 2)
            cotangents = cotangents.flatten(2).transpose(1, 2)
        fan_out, fan_in = len(layer.weight), math.prod(layer.weight.shape[1:])
        return _decomposable(inputs.reshape(-1, fan_in)), _decomposable(cotangents.reshape(-1, fan_out))


def _decomposable(rows: th.Tensor) -> th.Tensor:
    # torch has no eigenvectors in half precision.
    return rows.float() if rows.dtype in (th.float16, th.bfloat16) else rows
