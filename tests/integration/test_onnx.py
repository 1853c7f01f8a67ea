"""
A trained policy leaves PyTorch: exported to ONNX as SB3's documentation shows, and run by ONNX Runtime.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from small_models import ACTION_SPACES, OBSERVATION_SPACES, SpacesEnv, policy_for
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.trust_region.shared_switches import skip_distribution_checks

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnx, onnxscript and onnxruntime")
pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime")

N_STATES = 7


class Deployed(nn.Module):
    """
    The mean or most probable actions and the values.

    :param policy: a policy
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        actions, values, _ = self.policy(observations, deterministic=True)
        return actions, values


@pytest.mark.parametrize(
    ("observations", "actions", "kwargs"),
    [
        ("float32", "Box", {}),
        ("image", "Discrete", {}),
        pytest.param("float32", "MultiDiscrete", {}, marks=pytest.mark.slow),
        pytest.param("float32", "MultiBinary", {}, marks=pytest.mark.slow),
        pytest.param("float32", "Box", {"use_sde": True}, marks=pytest.mark.slow),
    ],
)
def test_exported_policy_acts_the_same(observations: str, actions: str, kwargs: dict[str, Any], tmp_path: Any) -> None:
    observation_space = OBSERVATION_SPACES[observations]
    policy, policy_kwargs = policy_for(observation_space)
    env = SpacesEnv(observation_space, ACTION_SPACES[actions])
    settings: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
    model = TRPO(policy, env, policy_kwargs=policy_kwargs, **settings, **kwargs).learn(128)

    model.observation_space.seed(0)
    batch = np.stack([model.observation_space.sample() for _ in range(N_STATES)])
    network, tensor = Deployed(model.policy).eval(), th.as_tensor(batch)
    # The checks of torch's distributions depend on the data, which the exporter can't follow.
    with skip_distribution_checks():
        th.onnx.export(
            network,
            (tensor[:2],),
            str(tmp_path / "policy.onnx"),
            input_names=["observations"],
            dynamic_shapes={"observations": {0: th.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    exported_actions, exported_values = session.run(None, {"observations": batch})

    expected_actions, expected_values = network(tensor)
    np.testing.assert_allclose(exported_actions, expected_actions.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(exported_values, expected_values.detach().numpy(), rtol=1e-5, atol=1e-5)
    low, high = getattr(model.action_space, "low", None), getattr(model.action_space, "high", None)
    np.testing.assert_allclose(
        np.clip(exported_actions, low, high) if low is not None else exported_actions,
        model.predict(batch, deterministic=True)[0],
        rtol=1e-5,
        atol=1e-6,
    )
