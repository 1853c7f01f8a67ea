"""
The way back: what is saved here loads in sb3-contrib's TRPO where this package is not installed, acts the same, and
trains on.
"""

import json
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from small_models import ACTION_SPACES, OBSERVATION_SPACES, SpacesEnv, policy_for
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo import TRPO

# For a process in which this package can't be imported; the models and observations are in folders.
IN_CONTRIB = """
import sys, warnings
sys.modules["sb3_trpo"] = None
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
import json, pickle
from pathlib import Path
import gymnasium as gym
import numpy as np
import sb3_contrib
import torch
torch.set_num_threads(1)

class Env(gym.Env):
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), float(np.sum(action)), self.np_random.random() < 0.1, False, {}

def run(folder, kwargs):
    model = sb3_contrib.TRPO.load(folder / "model.zip", device="cpu", **kwargs)
    observations = pickle.loads((folder / "observations").read_bytes())
    np.save(folder / "actions.npy", [model.predict(obs, deterministic=True)[0] for obs in observations])
    model.set_env(Env(model.observation_space, model.action_space))
    model.learn(2 * model.n_steps, reset_num_timesteps=False)
    model.save(folder / "theirs.zip")
    return ""

outcomes = {}
for folder, kwargs in json.loads(sys.argv[1]):
    try:
        outcomes[folder] = run(Path(folder), kwargs)
    except Exception as error:
        outcomes[folder] = f"{type(error).__name__}: {error}"
print(json.dumps(outcomes))
"""
SETTINGS: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
SCHEDULE = "schedule of the trust region"
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Box": ("float32", "Box", {}),
    "bits": ("float32", "MultiBinary", {}),
    "images": ("image", "MultiDiscrete", {}),
    "images, shared features": ("image", "Discrete", {"policy_kwargs": {"share_features_extractor": True}}),
    "Dict": ("Dict", "Box", {}),
    "gSDE": ("float32", "Box", {"use_sde": True}),
    "schedule": ("float32", "Discrete", {"learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}),
    "function": ("float32", "Discrete", {"learning_rate": lambda remaining: 1e-3 * remaining}),
    SCHEDULE: ("float32", "Box", {"target_kl": LinearSchedule(0.02, 0.01, 1.0)}),
    "what sb3-contrib lacks": (
        "float32",
        "Box",
        {
            "cg_warm_start": True,
            "adaptive_kl": True,
            "ent_coef": 0.01,
            "max_grad_norm": 0.5,
            "min_std": LinearSchedule(0.1, 0.05, 1.0),
            "max_std": 0.9,
            "noise_correlation": 0.5,
            "preconditioner": None,
        },
    ),
}


def save(observations: str, actions: str, options: dict[str, Any], folder: pathlib.Path) -> tuple[TRPO, np.ndarray]:
    """
    Train and save a model, and observations beside it.

    :return: the model, and its actions at the observations
    """
    space = OBSERVATION_SPACES[observations]
    policy, policy_kwargs = policy_for(space)
    options = {**options, "policy_kwargs": {**policy_kwargs, **options.get("policy_kwargs", {})}}
    model = TRPO(policy, SpacesEnv(space, ACTION_SPACES[actions]), **SETTINGS, **options).learn(128)
    model.save(folder / "model")
    samples = [space.sample() for _ in range(5)]
    (folder / "observations").write_bytes(pickle.dumps(samples))
    return model, np.stack([model.predict(obs, deterministic=True)[0] for obs in samples])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[TRPO, np.ndarray, pathlib.Path, str]]:
    """
    Save each kind of model and load it in sb3-contrib's TRPO.

    :return: for each kind of model the model, its actions, its folder, and what sb3-contrib's error was, if any
    """
    models = {}
    for name, (observations, actions, options) in MODELS.items():
        folder = tmp_path_factory.mktemp("model")
        models[name] = (*save(observations, actions, options, folder), folder)
    # As docs/drop-in.md says: sb3-contrib's target_kl is a number.
    arguments = [(str(models[name][2]), {"target_kl": 0.01} if name == SCHEDULE else {}) for name in models]
    done = subprocess.run(
        [sys.executable, "-c", IN_CONTRIB, json.dumps(arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    return {name: (*model, outcomes[str(model[2])]) for name, model in models.items()}


@pytest.mark.parametrize("name", MODELS)
def test_contrib_loads_it_acts_the_same_and_trains_on(name, saved):
    model, chosen, folder, error = saved[name]
    assert error == ""
    np.testing.assert_allclose(np.load(folder / "actions.npy"), chosen, atol=1e-6)
    # And from there it comes home.
    again = TRPO.load(folder / "theirs", device="cpu")
    assert type(again.policy) is type(model.policy)
    assert again.num_timesteps == model.num_timesteps + 128


def test_saving_leaves_the_model_as_it_is(tmp_path):
    model, _ = save("image", "Discrete", {"cg_warm_start": True}, tmp_path)
    kwargs, policy_class, direction = dict(model.policy_kwargs), model.policy_class, model.cg_direction.clone()
    model.save(tmp_path / "again")
    assert (model.policy_kwargs, model.policy_class) == (kwargs, policy_class)
    assert direction.equal(model.cg_direction)
    assert direction.equal(TRPO.load(tmp_path / "again", device="cpu").cg_direction)
