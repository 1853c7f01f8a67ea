"""
Deployed policies act as ``predict`` does, from raw observations, in torch's own formats and in ONNX Runtime.
"""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_models import ACTION_SPACES, OBSERVATION_SPACES, SpacesEnv, policy_for
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from sb3_trpo import TRPO, DeployedPolicy, export_onnx
from sb3_trpo.validation.values import UserError

N_STATES = 5


def trained(observations: str, actions: str = "Box", normalize: bool = True, **kwargs: Any) -> TRPO:
    space = OBSERVATION_SPACES[observations]
    policy, policy_kwargs = policy_for(space)
    env: Any = DummyVecEnv([lambda: SpacesEnv(space, ACTION_SPACES[actions])])
    if normalize:
        keys = ["vector"] if isinstance(space, spaces.Dict) else None
        env = VecNormalize(env, norm_obs_keys=keys)
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
    # Far from 0, so that some actions are beyond the bounds.
    policy_kwargs["log_std_init"] = 1.0
    return TRPO(policy, env, policy_kwargs=policy_kwargs, **settings, **kwargs).learn(64)


def draw(space: spaces.Space[Any]) -> Any:
    space.seed(1)
    samples = [space.sample() for _ in range(N_STATES)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def expected(model: TRPO, raw: Any) -> np.ndarray:
    normalization = model.get_vec_normalize_env()
    return model.predict(raw if normalization is None else normalization.normalize_obs(raw), deterministic=True)[0]


CASES = [
    ("float32", "Box", True, {}),
    ("float64-2d", "Box-2d", True, {}),
    ("Dict", "Discrete", True, {}),
    ("image", "MultiDiscrete", False, {}),
    ("Discrete", "MultiBinary", False, {}),
    ("float32", "Box", True, {"use_sde": True}),
]


@pytest.mark.parametrize(("observations", "actions", "normalize", "kwargs"), CASES)
def test_module_acts_as_predict_does(observations: str, actions: str, normalize: bool, kwargs: dict[str, Any]) -> None:
    model = trained(observations, actions, normalize, **kwargs)
    module = DeployedPolicy(model)
    raw = draw(module.observation_space)
    tensors = {k: th.as_tensor(v) for k, v in raw.items()} if isinstance(raw, dict) else th.as_tensor(raw)
    np.testing.assert_allclose(module(tensors).numpy(), expected(model, raw), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("observations", "actions", "normalize", "kwargs"),
    [CASES[0], *[pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:]]],
)
def test_file_acts_as_predict_does(
    observations: str, actions: str, normalize: bool, kwargs: dict[str, Any], tmp_path: Any
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs sb3-trpo[onnx]")
    model = trained(observations, actions, normalize, **kwargs)
    path = export_onnx(model, tmp_path / "policy")
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"] == [path.name]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    raw = draw(DeployedPolicy(model).observation_space)
    inputs = raw if isinstance(raw, dict) else {"observation": raw}
    for n in (N_STATES, 1):
        (given,) = session.run(["action"], {key: value[:n] for key, value in inputs.items()})
        np.testing.assert_allclose(given, expected(model, raw)[:n], rtol=1e-4, atol=1e-4)


def test_torchs_own_formats(tmp_path: Any) -> None:
    model = trained("float32")
    raw = draw(DeployedPolicy(model).observation_space)
    module, tensor = DeployedPolicy(model), th.as_tensor(raw)
    traced = th.jit.trace(module, tensor[:2], check_trace=False)
    traced.save(str(tmp_path / "policy.pt"))
    shapes = ({0: th.export.Dim("batch")},)
    exported = th.export.export(module, (tensor[:2],), dynamic_shapes=shapes)
    th.export.save(exported, tmp_path / "policy.pt2")
    for loaded in (th.jit.load(tmp_path / "policy.pt"), th.export.load(tmp_path / "policy.pt2").module()):
        np.testing.assert_allclose(loaded(tensor), expected(model, raw), rtol=1e-5, atol=1e-6)


def test_a_deployed_policy_is_a_copy_and_leaves_the_model_as_it_is() -> None:
    model = trained("float32")
    normalization = model.get_vec_normalize_env()
    assert normalization is not None
    module = DeployedPolicy(model)
    raw = th.as_tensor(draw(module.observation_space))
    before = module(raw)
    model.learn(64)
    assert th.equal(module(raw), before)
    assert all(parameter.requires_grad for parameter in model.policy.parameters())


@pytest.mark.parametrize(("actions", "use_sde"), [("Box", True), ("Box", False), ("MultiDiscrete", False)])
def test_what_a_policy_has_computed_last_does_not_matter(actions: str, use_sde: bool, tmp_path: Any) -> None:
    """After ``load``, where gSDE has drawn its noise with a gradient, and after somebody asked for gradients."""
    trained("float32", actions, normalize=False, use_sde=use_sde).save(tmp_path / "model")
    model = TRPO.load(
        tmp_path / "model",
        env=DummyVecEnv([lambda: SpacesEnv(OBSERVATION_SPACES["float32"], ACTION_SPACES[actions])]),
        device="cpu",
    )
    raw = draw(model.observation_space)
    for compute in (lambda: None, lambda: model.policy.get_distribution(th.as_tensor(raw))):
        compute()
        np.testing.assert_allclose(DeployedPolicy(model)(th.as_tensor(raw)), expected(model, raw), rtol=1e-5, atol=1e-6)


def test_normalization_may_be_given_to_a_loaded_model(tmp_path: Any) -> None:
    model = trained("float32")
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    raw = th.as_tensor(draw(DeployedPolicy(model).observation_space))
    assert th.equal(DeployedPolicy(loaded, model.get_vec_normalize_env())(raw), DeployedPolicy(model)(raw))
    assert not th.equal(DeployedPolicy(loaded)(raw), DeployedPolicy(model)(raw))


def test_a_loaded_model_without_environments_is_warned_of(tmp_path: Any) -> None:
    trained("float32").save(tmp_path / "model")
    with pytest.warns(UserWarning, match="no VecNormalize") as caught:
        DeployedPolicy(TRPO.load(tmp_path / "model", device="cpu"))
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.slow
def test_export_says_nothing(tmp_path: Any) -> None:
    """In a process of its own, for torch says some of it once."""
    code = (
        "from sb3_trpo import TRPO, export_onnx\n"
        f"export_onnx(TRPO('MlpPolicy', 'Pendulum-v1', device='cpu'), {str(tmp_path / 'policy.onnx')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ppo_can_be_deployed_too() -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu")
    raw = draw(model.observation_space)
    given = DeployedPolicy(model)(th.as_tensor(raw))
    np.testing.assert_allclose(given, model.predict(raw, deterministic=True)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [None, 3, "model.zip", TRPO], ids=repr)
@pytest.mark.parametrize("deploy", [DeployedPolicy, lambda model: export_onnx(model, "policy.onnx")])
def test_what_is_no_model_is_named(model: Any, deploy: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^model is .*, but must be a model of TRPO, PPO or A2C"):
        deploy(model)
    assert list(tmp_path.iterdir()) == []


class Half(VecEnvWrapper):
    """Halves observations."""

    def reset(self) -> Any:
        return self.venv.reset() * 0.5

    def step_wait(self) -> Any:
        obs, *rest = self.venv.step_wait()
        return obs * 0.5, *rest


def test_wrappers_that_are_not_baked_in_are_told() -> None:
    twice = VecNormalize(VecNormalize(make_vec_env("Pendulum-v1")))
    with pytest.raises(UserError, match="in two VecNormalize, one in the other"):
        DeployedPolicy(TRPO("MlpPolicy", twice, device="cpu"))
    for env in (Half(make_vec_env("Pendulum-v1")), Half(VecNormalize(make_vec_env("Pendulum-v1")))):
        with pytest.warns(UserWarning, match="are in Half, which may change observations"):
            DeployedPolicy(TRPO("MlpPolicy", env, device="cpu"))


def test_wrappers_that_change_no_observation_are_told_nothing(recwarn: pytest.WarningsRecorder) -> None:
    DeployedPolicy(TRPO("MlpPolicy", VecNormalize(VecMonitor(make_vec_env("Pendulum-v1"))), device="cpu"))
    assert [str(warning.message) for warning in recwarn if "baked in" in str(warning.message)] == []


def test_what_can_not_be_deployed_is_said() -> None:
    stacked = VecFrameStack(VecNormalize(make_vec_env("Pendulum-v1")), 2)
    with pytest.raises(UserError, match="has to reach the policy as it is"):
        DeployedPolicy(TRPO("MlpPolicy", stacked, device="cpu"))
    pytest.importorskip("sb3_contrib", reason="needs sb3-trpo[contrib]")
    from sb3_trpo import RecurrentTRPO

    with pytest.raises(UserError, match="masks and memory"):
        DeployedPolicy(RecurrentTRPO("MlpLstmPolicy", "CartPole-v1", device="cpu"))
