"""
Policies with an LSTM: sb3-contrib's, with forget gates that are open at the beginning.
"""

from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from torch import nn


class LstmPolicy(RecurrentActorCriticPolicy):
    """
    sb3-contrib's ``MlpLstmPolicy``, with a bias in the LSTMs' forget gates.

    torch starts with a bias near 0: half of what is remembered, and of the gradient, is lost at each step. With a bias
    of 1 it is a quarter (Gers et al. 2000; Jozefowicz et al. 2015, http://proceedings.mlr.press/v37/jozefowicz15.html).

    :param args: the positional arguments of sb3-contrib's policy
    :param forget_bias: the bias of the forget gates at the beginning; 0 leaves it to torch, as sb3-contrib does
    :param kwargs: the keyword arguments of sb3-contrib's policy
    """

    def __init__(self, *args: Any, forget_bias: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for lstm in (self.lstm_actor, self.lstm_critic):
            if lstm is not None and forget_bias != 0.0:
                open_forget_gates(lstm, forget_bias)


class CnnLstmPolicy(LstmPolicy, RecurrentActorCriticCnnPolicy):
    """``LstmPolicy`` for images."""


class MultiInputLstmPolicy(LstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """``LstmPolicy`` for dictionary observations."""


@th.no_grad()
def open_forget_gates(lstm: nn.LSTM, bias: float) -> None:
    """
    Give the forget gates of an LSTM a bias.

    :param lstm: the LSTM
    :param bias: the bias
    """
    for name, parameter in lstm.named_parameters():
        # Of the four gates the forget gates are the second; torch adds two biases.
        if name.startswith("bias_"):
            parameter.view(4, -1)[1] = bias if name.startswith("bias_ih") else 0.0
