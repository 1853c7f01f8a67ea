"""
Small environments and policies of every kind that Stable-Baselines3 has, and a TRPO that measures its updates from the
outside.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from updates import action_distributions, mean_kl

from sb3_trpo import TRPO

N_STEPS = 64
TARGET_KL = 0.01

ACTION_SPACES: dict[str, spaces.Space] = {
    "Box": spaces.Box(-1.0, 1.0, (3,)),
    "Box-2d": spaces.Box(-2.0, 1.0, (2, 2)),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(4),
}
VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
OBSERVATION_SPACES: dict[str, spaces.Space] = {
    "float32": VECTOR,
    "float64-2d": spaces.Box(-1.0, 1.0, (2, 2), dtype=np.float64),
    "uint8": spaces.Box(0, 9, (4,), dtype=np.uint8),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "image": IMAGE,
    "image-channels-first": spaces.Box(0, 255, (1, 36, 36), dtype=np.uint8),
    "Dict": spaces.Dict({"image": IMAGE, "vector": VECTOR, "choice": spaces.Discrete(3)}),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary([2, 2]),
}


class SpacesEnv(gym.Env):
    """
    Random observations; the larger the action's sum, the larger the reward. Episodes are truncated after 20 steps.

    :param observation_space: any
    :param action_space: any with numbers
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self._n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self._n_steps += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self._n_steps == 20, {}


def policy_for(observation_space: spaces.Space) -> tuple[str, dict[str, Any]]:
    """
    Choose the policy for an observation space, with a small network.

    :param observation_space: one of ``OBSERVATION_SPACES``
    :return: the policy's alias and its arguments
    """
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy", {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 8}}
    if isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 3:
        return "CnnPolicy", {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
    return "MlpPolicy", {"net_arch": [8]}


class MeasuredTRPO(TRPO):
    """
    Note for each update the KL that it has logged, and the KL as torch computes it from the outside.
    """

    def train(self) -> None:
        observations = next(self.rollout_buffer.get()).observations
        before = action_distributions(self.policy, observations)
        super().train()
        measured = mean_kl(before, self.policy, observations)
        log = self.logger.name_to_value
        self.updates = [*getattr(self, "updates", []), (log["train/kl_divergence_loss"], measured)]


class Recurrent(nn.Module):
    """A cell that sees a sequence of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.cell(x.unsqueeze(1))[0].squeeze(1)


class Attention(nn.Module):
    """Each feature is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, nhead=2, dim_feedforward=8, batch_first=True)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.encoder(x.unsqueeze(2) * th.linspace(0.5, 1.5, 4, device=x.device)).mean(dim=2)


def _tied() -> nn.Module:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "layer-norm": lambda: nn.LayerNorm(8),
    "batch-norm": lambda: nn.BatchNorm1d(8),
    "dropout": lambda: nn.Dropout(0.3),
    "spectral-norm": lambda: spectral_norm(nn.Linear(8, 8)),
    "in-place": lambda: nn.ReLU(inplace=True),
    "convolution-1d": lambda: nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 1, 3, padding=1), nn.Flatten()),
    "recurrent": Recurrent,
    "attention": Attention,
    "tied-weights": _tied,
    "scripted": lambda: th.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.BatchNorm1d(8))),
    "no-units": lambda: nn.Sequential(nn.utils.skip_init(nn.Linear, 8, 0), nn.utils.skip_init(nn.Linear, 0, 8)),
}


class Extractor(BaseFeaturesExtractor):
    """
    A features extractor with a layer that is given.

    :param observation_space: of vectors
    :param layer: a key of ``LAYERS``
    """

    def __init__(self, observation_space: spaces.Box, layer: str) -> None:
        super().__init__(observation_space, features_dim=8)
        self.net = nn.Sequential(nn.Linear(observation_space.shape[0], 8), LAYERS[layer](), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


class TwoHeads(nn.Module):
    """
    What a user puts in the place of SB3's MlpExtractor: actor and critic share a layer, named after neither.

    :param features_dim: of the inputs
    """

    def __init__(self, features_dim: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 6
        self.trunk = nn.Linear(features_dim, 8)
        self.pi, self.vf = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.pi(self.trunk(features).sin()).tanh()

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.vf(self.trunk(features).sin()).tanh()


class TwoHeadsPolicy(ActorCriticPolicy):
    """A user's policy: a network of its own, and a bound on the mean actions."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = TwoHeads(self.features_dim)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(2.0 * self.action_net(latent_pi).tanh(), self.log_std)
