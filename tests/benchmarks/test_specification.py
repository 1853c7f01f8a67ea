"""
What decides a run, and what its hyperparameters are read from.
"""

import argparse
import math
from dataclasses import replace

import gymnasium as gym
import pytest
from campaign import overrides
from campaign.algorithms import ALGORITHMS, COMPARED, allowed_keys, read_hyperparameters, title
from campaign.command_line import parse_seeds
from campaign.experiment import Experiment
from campaign.plan import MUJOCO_TASKS
from campaign.specification import RunSpecification

PEERS = ("sb3_contrib", "ppo")


def specification(**changes) -> RunSpecification:
    hyperparams = {"policy": "MlpPolicy", "gamma": 0.99, "policy_kwargs": {"log_std_init": -1}}
    run = RunSpecification("learning", "CartPole-v1", "ppo", 0, 1000, hyperparams, {"eval_freq": 500})
    return replace(run, **changes)


class TestRunSpecification:
    @pytest.mark.parametrize(
        "change",
        [
            {"task": "Acrobot-v1"},
            {"algo": "sb3_contrib"},
            {"n_timesteps": 2000},
            {"hyperparams": {"policy": "MlpPolicy", "gamma": 0.98, "policy_kwargs": {"log_std_init": -1}}},
            {"protocol": {"eval_freq": 100}},
            {"vec_env": "envpool"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_whatever_decides_the_outcome_changes_both_hashes(self, change):
        run, other = specification(), specification(**change)
        assert other.settings_hash != run.settings_hash
        assert other.configuration_hash != run.configuration_hash
        assert run.differences(other).startswith(next(iter(change)))

    def test_the_seed_changes_the_configuration_but_not_the_settings(self):
        run, other = specification(), specification(seed=1)
        assert other.settings_hash == run.settings_hash
        assert other.configuration_hash != run.configuration_hash

    @pytest.mark.parametrize("change", [{"label": "a"}, {"source": "a file"}, {"command": "python x.py"}])
    def test_what_is_only_recorded_changes_neither(self, change):
        assert specification(**change).configuration_hash == specification().configuration_hash

    def test_the_order_of_keys_does_not_matter(self):
        run = specification()
        turned = replace(run, hyperparams=dict(reversed(run.hyperparams.items())))
        assert turned.configuration_hash == run.configuration_hash

    def test_survives_its_dictionary(self):
        assert RunSpecification.from_dict(specification(label="x").to_dict()) == specification(label="x")

    @pytest.mark.parametrize("label", ["a/b", "..\\x", "a b"])
    def test_a_label_that_is_no_folder_name_is_refused(self, label):
        with pytest.raises(ValueError, match="label="):
            specification(label=label)


class TestHyperparameters:
    @pytest.mark.parametrize("algo", PEERS)
    @pytest.mark.parametrize("task", MUJOCO_TASKS)
    def test_peers_have_an_entry_of_rl_zoo_for_every_task(self, algo, task):
        hyperparams, source = read_hyperparameters(algo, task)
        assert source.endswith(task.replace("-v5", "-v4"))
        assert hyperparams["normalize"] is True
        assert "n_timesteps" not in hyperparams

    def test_ours_are_one_set_for_all_mujoco_tasks(self):
        """
        Noise, horizon, λ and damping follow one rule in units of time. What the noise moves a body by is the same at
        first, whatever the length of a step; each σ is bounded by 0.63 of what it is then from below, at the end by
        0.21, and by 2.1 of it from above, at the end by 0.1. The horizon is 100 steps, and grows to 4 s where that is
        less. λ looks 0.25 s ahead. Damping is 0.1 / σ². Swimmer's γ, λ and δ are its own, and
        Humanoid's λ, critic epochs, damping and δ.
        """
        pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")
        entries = {}
        for task in MUJOCO_TASKS:
            entry = read_hyperparameters("sb3_trpo", task)[0]
            env = gym.make(task)
            n_actions, step = env.action_space.shape[0], env.unwrapped.dt
            env.close()
            std = 0.2246 / math.sqrt(n_actions * step)
            assert math.exp(entry.pop("policy_kwargs")["log_std_init"]) == pytest.approx(std, rel=0.01)
            bound = [float(number) for number in entry.pop("min_std").removeprefix("lin_").split("_")]
            assert bound == pytest.approx([0.63 * std, 0.21 * std], abs=0.005)
            bound = [float(number) for number in entry.pop("max_std").removeprefix("lin_").split("_")]
            assert bound == pytest.approx([2.1 * std, 0.1 * std], rel=0.02)
            *growth, entry["callback"] = entry["callback"]
            end = max(0.99, 1.0 - step / 4.0)
            gammas = {"start": 0.99, "end": pytest.approx(end)}
            assert growth == [{"sb3_trpo.GrowingHorizon": gammas}] * (end > 0.99)
            of_its_own = {"Swimmer-v5": {"gae_lambda": 0.98}, "Humanoid-v5": {"gae_lambda": 0.6, "cg_damping": 5.0}}
            by_the_rule = {"cg_damping": 0.1 / std**2, "gae_lambda": 1.0 - step / 0.25}
            for name, value in {**by_the_rule, **of_its_own.get(task, {})}.items():
                assert entry.pop(name) == pytest.approx(value, rel=0.06 if name == "cg_damping" else 0.005)
            entries[task] = entry
        swimmer, humanoid = entries.pop("Swimmer-v5"), entries.pop("Humanoid-v5")
        one_of_the_others = entries["HalfCheetah-v5"]
        assert all(entry == one_of_the_others for entry in entries.values())
        assert swimmer == {**one_of_the_others, "gamma": 0.9999, "target_kl": 0.004}
        assert humanoid == {**one_of_the_others, "n_critic_updates": 5, "target_kl": "lin_0.08_0.02"}

    def test_a_task_without_entry_gets_the_default(self):
        assert read_hyperparameters("ppo", "Taxi-v3")[1].endswith("default")

    def test_a_continuous_task_without_entry_gets_what_stands_for_its_kind(self, monkeypatch):
        """Pusher-v5 has an entry of ours, which is the rule's; the same task by another name has none."""
        pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")
        monkeypatch.setitem(gym.registry, "OwnArm-v0", replace(gym.spec("Pusher-v5"), id="OwnArm-v0"))
        entry, source = read_hyperparameters("sb3_trpo", "OwnArm-v0")
        assert source.endswith("default, and the rule")
        shipped = read_hyperparameters("sb3_trpo", "Pusher-v5")[0]
        assert entry.keys() == shipped.keys()
        assert [entry[key] for key in ("gae_lambda", "callback", "policy_kwargs", "target_kl")] == [
            shipped[key] for key in ("gae_lambda", "callback", "policy_kwargs", "target_kl")
        ]
        theirs, source = read_hyperparameters("sb3_contrib", "OwnArm-v0")
        assert source.endswith("in place of an entry")
        assert theirs == read_hyperparameters("sb3_contrib", "Walker2d-v5")[0]

    @pytest.mark.parametrize("algo", PEERS)
    def test_every_key_of_an_entry_may_be_set(self, algo):
        for task in MUJOCO_TASKS:
            assert read_hyperparameters(algo, task)[0].keys() <= allowed_keys(algo)

    def test_compared_algorithms_are_registered(self):
        assert set(COMPARED) <= set(ALGORITHMS)
        assert title("ppo@clip_range=0.1") == "PPO (SB3), clip_range=0.1"

    def test_rl_zoo_builds_the_model_that_the_entry_describes(self):
        hyperparams, source = read_hyperparameters("ppo", "CartPole-v1")
        run = RunSpecification("learning", "CartPole-v1", "ppo", 3, 5000, hyperparams, {}, source=source)
        model = Experiment(run).make_model()
        assert (model.n_envs, model.n_steps, model.n_epochs, model.seed) == (8, 32, 20, 3)
        # lin_0.2: half of it in the middle of training.
        assert model.clip_range(0.5) == pytest.approx(0.1)

    def test_target_kl_may_have_a_schedule(self):
        hyperparams, source = read_hyperparameters("policy_gradient", "CartPole-v1")
        hyperparams["target_kl"] = "lin_0.04"
        run = RunSpecification("learning", "CartPole-v1", "policy_gradient", 3, 5000, hyperparams, {}, source=source)
        assert Experiment(run).make_model().target_kl(0.5) == pytest.approx(0.02)


class TestOverrides:
    ALLOWED = frozenset({"gamma", "n_envs", "policy_kwargs", "normalize", "learning_rate"})

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-3", 1e-3),
            ("8", 8),
            ("true", True),
            ("False", False),
            ("null", None),
            ("[256, 256]", [256, 256]),
            ("{'norm_obs': False}", {"norm_obs": False}),
            ("lin_0.001", "lin_0.001"),
        ],
    )
    def test_values_mean_what_they_look_like(self, text, value):
        assert overrides.parse(text) == value
        assert type(overrides.parse(text)) is type(value)

    def test_nested_values_change_what_they_name_and_nothing_else(self):
        before = {"gamma": 0.9, "policy_kwargs": {"log_std_init": -1, "net_arch": {"pi": [64], "vf": [64]}}}
        after = overrides.apply(before, ["policy_kwargs.net_arch.pi=[8]", "policy_kwargs.log_std_init=0"], self.ALLOWED)
        assert after == {"gamma": 0.9, "policy_kwargs": {"log_std_init": 0, "net_arch": {"pi": [8], "vf": [64]}}}
        assert before["policy_kwargs"]["log_std_init"] == -1

    @pytest.mark.parametrize("current", ["dict(log_std_init=-2, ortho_init=False)", {"log_std_init": -2}, None])
    def test_inside_an_expression_they_do_as_well(self, current):
        before = {} if current is None else {"policy_kwargs": current}
        settings = ["policy_kwargs.log_std_init=-1", "policy_kwargs.activation_fn=nn.ReLU"]
        text = overrides.apply(before, settings, self.ALLOWED)["policy_kwargs"]
        nn = argparse.Namespace(ReLU="the class")
        value = eval(text, {"nn": nn})
        assert (value["log_std_init"], value["activation_fn"]) == (-1, "the class")

    @pytest.mark.parametrize("setting", ["gamma", "=1", "policy_kwargs.=1", "gama=0.9"])
    def test_what_cannot_be_set_is_refused_by_name(self, setting):
        with pytest.raises(ValueError, match="--set '"):
            overrides.apply({}, [setting], self.ALLOWED)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("7", [7]), ("5,0-2,1", [5, 0, 1, 2]), ("100-101", [100, 101])]
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2"])
def test_other_seeds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_seeds(text)
