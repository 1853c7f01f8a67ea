"""
The rows of the speed benchmark that measure several things at once: what they measure, and how it is judged.
"""

import builtins
import importlib
import threading

import numpy as np
import pytest
from speed import large_tables
from speed.command_line import make_tables
from speed.many import ALGORITHMS, for_ppo, many_setting
from speed.pendulums import MAX_SPEED, N_OBSERVATIONS, N_PENDULUMS, TIME_LIMIT, Pendulums
from speed.pictures import draw_budget
from speed.run import Run, write
from speed.stopwatch import Stopwatch
from speed.timed_run import IMPORTS, PARTS, TIMED, time_imports
from speed.variants import PLAIN, VARIANTS
from stable_baselines3.common.vec_env import VecMonitor


def test_pendulums_end_episodes_and_begin_new_ones_as_sb3_has_it():
    env = VecMonitor(Pendulums(64, seed=0))
    obs = env.reset()
    random = np.random.default_rng(0)
    n_truncated = n_terminated = 0
    for _ in range(TIME_LIMIT):
        obs, rewards, dones, infos = env.step(random.uniform(-1, 1, (64, N_PENDULUMS)).astype(np.float32))
        assert obs.shape == (64, N_OBSERVATIONS)
        assert obs.dtype == np.float32
        assert rewards.shape == dones.shape == (64,)
        for i, info in enumerate(infos):
            assert ("terminal_observation" in info) == ("episode" in info) == bool(dones[i])
            if dones[i]:
                last = info["terminal_observation"]
                assert not np.array_equal(last, obs[i])
                # In shares of the largest speed.
                too_fast = np.abs(last[2 * N_PENDULUMS :]).max() > 1
                assert too_fast != info["TimeLimit.truncated"]
                n_truncated, n_terminated = n_truncated + (not too_fast), n_terminated + too_fast
    # Each has come to its time limit, if not to another end.
    assert n_truncated + n_terminated >= 64
    assert n_truncated > 0
    assert n_terminated > 0
    assert np.abs(obs[:, 2 * N_PENDULUMS :]).max() <= MAX_SPEED


@pytest.mark.filterwarnings("ignore:TRPO. the batch is too small")
def test_all_algorithms_have_the_same_network_minibatches_and_epochs():
    setting = many_setting(8)
    env = setting.make_envs()
    models = {
        name: (for_ppo(setting) if name == "PPO" else setting).make_model(algorithm, env)
        for name, algorithm in ALGORITHMS.items()
    }
    networks = {str(model.policy.mlp_extractor) for model in models.values()}
    assert len(networks) == 1
    assert {model.batch_size for model in models.values()} == {8 * 24 // 4}
    epochs = {getattr(model, "n_epochs", None) or model.n_critic_updates for model in models.values()}
    assert epochs == {5}


@pytest.mark.parametrize(("beyond", "says"), [(100.0, "1.00 times; ≤ 1.25: reached"), (250.0, "**100% over**")])
def test_memory_is_judged_by_its_growth_beyond_the_rollout(beyond, says):
    measured = {
        "sizes": {},
        "memory": {
            "98304": {
                "sb3_trpo": {"extra": 130.0, "rollout": 30.0},
                "sb3-contrib": {"extra": 5030.0, "rollout": 30.0},
            },
            "983040": {"sb3_trpo": {"extra": 300.0 + beyond, "rollout": 300.0}},
        },
    }
    first, theirs, second = large_tables.many({("many", 1): {"measured": measured}}).splitlines()[-3:]
    assert "| 98,304 | 30 MiB | 130 MiB | 100 MiB |  |" in first
    assert "| 5000 MiB |" in theirs
    assert says in second


@pytest.mark.parametrize(("slowest", "n_above"), [(1.6, 2), (1.2, 2)])
def test_variants_are_judged_beside_sb3_contrib_and_beside_the_plainest(slowest, n_above):
    ours = {PLAIN: [1.0], "ELU": [1.25], "gSDE": [4.0]}
    theirs = {PLAIN: [3.0], "ELU": [3.75], "gSDE": [4.0 * slowest]}
    measured = {"seconds": {"sb3_trpo": ours, "sb3-contrib": theirs}, "steps": 1000}
    text = large_tables.variants({("variants", 1): {"measured": measured}})
    assert f"{n_above} of 3, reached" in text
    plain, elu, gsde = (line.split("|")[1:-1] for line in text.splitlines()[-3:])
    assert [cell.strip() for cell in plain[2:5]] == ["1000/s", "333/s", "3.0 [3.0, 3.0]"]
    assert elu[-2:] == [" 0.80 [0.80, 0.80] ", " ≥ 0.5: reached "]
    assert "50% short" in gsde[-1]
    assert ("reached" in gsde[5]) == (slowest >= 1.5)


def test_every_variant_has_a_peer_of_the_same_kind():
    assert {"ELU", "SiLU", "GELU", "LeakyReLU", "gSDE", "Dict observations"} <= set(VARIANTS)
    assert any(variant.callback is not None for variant in VARIANTS.values())


BUDGET = {"seconds": {"rollouts": 3.0, "updates": 1.0}, "task": "Pendulum-v1", "timesteps": 2000}


def test_the_parts_of_a_budget_make_the_whole(tmp_path):
    text = large_tables.budget({("budget", 1): {"measured": BUDGET}})
    assert text.splitlines()[-3:] == [
        "| rollouts | 3.0 s | 75.0% |",
        "| updates | 1.0 s | 25.0% |",
        "| whole | 4.0 s | 100.0% |",
    ]
    draw_budget(BUDGET, tmp_path / "budget.png")
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_budget_times_is_there_under_its_name():
    for module, owner, name, part in TIMED:
        found = importlib.import_module(module)
        assert callable(getattr(getattr(found, owner) if owner else found, name))
        assert part in PARTS


def test_an_import_is_timed_in_the_main_thread_alone(monkeypatch):
    # Put back at the end.
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)
    watch = Stopwatch()
    time_imports(watch)
    thread = threading.Thread(target=lambda: __import__("colorsys"))
    thread.start()
    thread.join()
    assert IMPORTS not in watch.seconds
    import colorsys  # noqa: F401

    assert watch.seconds[IMPORTS] > 0


def test_a_budget_is_shown_in_the_report_with_its_picture(tmp_path):
    write(tmp_path, "budget", Run(threads=1, quick=True), BUDGET, load_before=0.0)
    assert tmp_path / "budget.png" in make_tables(tmp_path)
    text = (tmp_path / "TABLE.md").read_text()
    assert f"](results/{tmp_path.name}/budget.png)" in text
