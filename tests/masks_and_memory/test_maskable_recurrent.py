import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from masked_game import MASKED_SPACES, MaskedGame, sizes_of
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO

SMALL = {"lstm_hidden_size": 4, "net_arch": [5]}


class Notes(BaseCallback):
    """Notes what a rollout begins with, what the policy saw, and what it was allowed."""

    def _on_rollout_start(self) -> None:
        self.states = copy.deepcopy(self.model._last_lstm_states)
        self.seen: list[tuple[Any, Any, Any]] = []
        self.masks = np.stack(self.training_env.env_method("action_masks"))

    def _on_step(self) -> bool:
        starts = th.as_tensor(self.locals["self"]._last_episode_starts).float()
        self.seen.append((self.locals["obs_tensor"].clone(), starts, self.masks))
        self.masks = np.stack(self.training_env.env_method("action_masks"))
        return True


def envs(n: int = 2, **kwargs: Any) -> Any:
    return make_vec_env(lambda: MaskedGame(steps=(1, 9), **kwargs), n_envs=n, seed=0)


def make(kind: Any = MaskableRecurrentTRPO, env: Any = None, **kwargs: Any) -> Any:
    settings = {"n_steps": 32, "batch_size": 16, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
    return kind("MlpLstmPolicy", envs() if env is None else env, **{**settings, **kwargs})


def log_probs(policy: Any, notes: Notes, sizes: list[int]) -> list[th.Tensor]:
    """Step by step and by hand: of each sub-action, ln π of its choices, -inf for those that are forbidden."""
    memory, rows = notes.states.pi, []
    with th.no_grad():
        for obs, starts, masks in notes.seen:
            latent, memory = policy._process_sequence(obs, memory, starts, policy.lstm_actor)
            logits = policy.action_net(policy.mlp_extractor.forward_actor(latent)).double()
            rows.append(logits.masked_fill(~th.as_tensor(masks), -th.inf))
    return [part.log_softmax(dim=1) for part in th.cat(rows).split(sizes, dim=1)]


@pytest.mark.parametrize("space", MASKED_SPACES, ids=str)
def test_kl_of_masked_sequences_stays_within_delta(space: Any) -> None:
    model = make(env=envs(action_space=space))
    for _ in range(2):
        old, notes = copy.deepcopy(model.policy), Notes()
        model.learn(64, callback=notes, reset_num_timesteps=False)
        kl = th.zeros(64, dtype=th.float64)
        parts = (log_probs(policy, notes, sizes_of(space)) for policy in (old, model.policy))
        for p, q in zip(*parts, strict=True):
            kl += th.where(p > -th.inf, p.exp() * (p - q), 0.0).sum(dim=1)
        measured = float(kl.mean())
        assert 0.3 * 0.01 < measured <= 0.01 * (1 + 1e-3)
        assert measured == pytest.approx(model.logger.name_to_value["train/kl_divergence_loss"], rel=1e-3)


@pytest.mark.parametrize("space", MASKED_SPACES[:2], ids=str)
def test_with_all_choices_allowed_the_update_is_that_of_memory_alone(space: Any) -> None:
    models = [make(kind, envs(action_space=space, p_allowed=1.0)) for kind in (MaskableRecurrentTRPO, RecurrentTRPO)]
    for model in models:
        model.set_random_seed(0)
        model.learn(128)
    masked, plain = (model.policy.state_dict() for model in models)
    assert all(th.equal(value, plain[name]) for name, value in masked.items())


def test_predict_takes_states_and_masks() -> None:
    model = make().learn(64)
    obs, state = np.zeros((2, 3), dtype=np.float32), None
    for choice in range(5):
        action, state = model.predict(obs, state=state, action_masks=np.arange(10) % 5 == choice)
        assert (action == choice).all()
    assert len({int(a) for _ in range(200) for a in model.predict(obs)[0]}) > 1
    callback = MaskableEvalCallback(envs(1), eval_freq=16, n_eval_episodes=2, verbose=0)
    model.learn(64, callback=callback)
    assert np.isfinite(callback.last_mean_reward)
    assert np.isfinite(evaluate_policy(model, envs(), n_eval_episodes=4, warn=False)[0])


def test_a_copy_during_a_rollout_leaves_the_environments_alone() -> None:
    class Copies(BaseCallback):
        def _on_step(self) -> bool:
            self.copy = copy.deepcopy(self.model.policy)
            return True

    callback = Copies()
    make().learn(64, callback=callback)
    action, _ = callback.copy.predict(np.zeros((3, 3), dtype=np.float32))
    assert action.shape == (3,)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_model_acts_and_learns_as_before(tmp_path: Any, trusted: bool) -> None:
    model = make().learn(64)
    model.save(tmp_path / "model.zip")
    loaded = MaskableRecurrentTRPO.load(tmp_path / "model.zip", env=envs(), device="cpu", trusted=trusted)
    obs = np.random.default_rng(0).uniform(-1, 1, (2, 3)).astype(np.float32)
    for one, other in zip(model.predict(obs)[1], loaded.predict(obs)[1], strict=True):
        assert np.array_equal(one, other)
    loaded.set_logger(configure(None, []))
    loaded.learn(64)


def test_bad_masks_and_policies_without_masks_are_refused() -> None:
    class Broken(MaskedGame):
        def action_masks(self) -> Any:
            return np.zeros(5, dtype=bool) if self.steps_left == 1 else super().action_masks()

    with pytest.raises(ValueError, match=r"environment \d of 2 after \d+ steps are all false"):
        make(env=make_vec_env(Broken, n_envs=2, seed=0)).learn(64)
    with pytest.raises(ValueError, match="has no method action_masks"):
        make(env=make_vec_env("CartPole-v1", n_envs=2)).learn(64)
    make(env=make_vec_env("CartPole-v1", n_envs=2)).learn(64, use_masking=False)
    with pytest.raises(ValueError, match=r"or a subclass of one of these"):
        MaskableRecurrentTRPO(RecurrentActorCriticPolicy, envs())


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        (TRPO, "MlpPolicy"),
        (MaskableTRPO, "MlpPolicy"),
        (RecurrentTRPO, "MlpLstmPolicy"),
        (MaskableRecurrentTRPO, "MlpLstmPolicy"),
    ],
)
def test_a_run_is_called_after_its_algorithm_unless_it_is_given_a_name(tmp_path: Any, kind: Any, policy: str) -> None:
    model = kind(policy, envs(p_allowed=1.0), n_steps=8, batch_size=8, device="cpu", tensorboard_log=str(tmp_path))
    model.learn(16)
    model.learn(16, tb_log_name="mine")
    assert {path.name for path in tmp_path.iterdir()} == {f"{kind.__name__}_1", "mine_1"}
