"""
Runs side by side: never two settings in one row, and nothing of a stranger's run is run.
"""

import json
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("scipy", reason="needs sb3-trpo[zoo]")

from scipy import stats

from sb3_trpo.cli import main
from sb3_trpo.commands.compare import group, interval
from sb3_trpo.commands.runs import Run, read_run
from sb3_trpo.saved_models.refused import RefusedModelError

TASK = "CartPole-v1"
# Eleven lists, each of nine times the one before.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def leave_run(logs: Path, seed: int, returns: list[float], algo: str = "trpo", n_timesteps: int = -1, **hyperparams):
    """
    Write what RL Zoo's ``train`` leaves, as RL Zoo writes it.
    """
    folder = logs / algo / f"{TASK}_{len(list((logs / algo).glob('*'))) + 1}"
    (folder / TASK).mkdir(parents=True)
    config = {"n_envs": 8, "n_timesteps": 3000, "policy": "MlpPolicy", "target_kl": 0.02, **hyperparams}
    args = {"algo": algo, "env": TASK, "seed": seed, "n_timesteps": n_timesteps, "env_kwargs": None, "verbose": 0}
    (folder / TASK / "config.yml").write_text(yaml.dump(OrderedDict(sorted(config.items()))))
    (folder / TASK / "args.yml").write_text(yaml.dump(OrderedDict(sorted(args.items()))))
    with zipfile.ZipFile(folder / f"{TASK}.zip", "w") as archive:
        archive.writestr("data", json.dumps({"cg_residual_tol": 0.1}))
    steps = 1000 * np.arange(1, len(returns) + 1)
    np.savez(folder / "evaluations.npz", timesteps=steps, results=np.array(returns)[:, None] + [[-1.0, 1.0]])
    return folder


def compare(capsys, *arguments) -> str:
    main(["compare", *map(str, arguments)])
    return capsys.readouterr().out


def test_each_setting_has_a_row_of_its_own(tmp_path, capsys):
    for seed in range(3):
        leave_run(tmp_path, seed, [1.0, 100.0 + seed])
        leave_run(tmp_path, seed, [1.0, 200.0 + seed], target_kl="lin_0.1")
    leave_run(tmp_path, 0, [1.0, 300.0], algo="ppo")
    leave_run(tmp_path, 4, [1.0, 2.0, 50.0])
    leave_run(tmp_path, 4, [1.0, 60.0], n_timesteps=2000)
    text = compare(capsys, tmp_path)
    assert "201.0 [198.5, 203.5]" in text
    assert "101.0 [98.5, 103.5]" in text
    assert len(re.findall(" runs?   ", text)) == 5
    assert "target_kl=lin_0.1" in text
    assert "algo=ppo" in text
    assert "evaluated at step=3000" in text
    assert "n_timesteps=2000" in text
    assert "policy=" not in text


def test_the_interval_is_students_and_differences_are_welchs(tmp_path, capsys):
    a, b = [100.0, 104.0, 111.0], [90.0, 95.0, 97.0, 99.0]
    for seed, score in enumerate(a):
        leave_run(tmp_path, seed, [score])
    for seed, score in enumerate(b):
        leave_run(tmp_path, seed, [score], gamma=0.9)
    low, high = interval(np.array(a))
    assert (low + high) / 2 == pytest.approx(np.mean(a))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(a))
    expected = stats.ttest_ind(a, b, equal_var=False)
    text = compare(capsys, tmp_path)
    assert f"{np.mean(a) - np.mean(b):.1f} [{expected.confidence_interval().low:.1f}, " in text
    assert f"p = {expected.pvalue:.2g}" in text


def test_equal_settings_share_a_row_whatever_the_order_and_a_seed_that_comes_twice_is_said(tmp_path, capsys):
    leave_run(tmp_path, 0, [5.0], policy_kwargs={"a": 1, "b": 2})
    leave_run(tmp_path, 0, [7.0], policy_kwargs={"b": 2, "a": 1})
    text = compare(capsys, tmp_path)
    assert "2 runs   the same settings" in text
    assert "a seed comes twice" in text


def test_groups_keep_every_run(tmp_path):
    runs = [
        Run(tmp_path, TASK, str(seed), {"gamma": gamma}, np.array([1.0]), np.array([float(seed)]))
        for seed in range(4)
        for gamma in ("0.9", "0.99")
    ]
    rows = group(runs)
    assert sorted(len(row) for row in rows) == [4, 4]
    assert all(len({run.settings["gamma"] for run in row}) == 1 for row in rows)


def test_curves_are_drawn_where_runs_have_common_steps(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs sb3-trpo[zoo]")
    leave_run(tmp_path / "logs", 0, [1.0, 2.0, 4.0])
    leave_run(tmp_path / "logs", 1, [1.0, 3.0, 5.0])
    leave_run(tmp_path / "logs", 1, [1.0, 3.0], env_wrapper="$a$.b")
    picture = tmp_path / "curves.png"
    assert str(picture) in compare(capsys, tmp_path / "logs", "-o", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("CartPole-v1/config.yml", b"x" * 300_000, "larger than"),
        ("CartPole-v1/config.yml", b"[1, 2]", "holds no settings"),
        ("CartPole-v1/config.yml", b"a: [", "can't be read"),
        (
            "CartPole-v1/config.yml",
            (
                "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
            ).encode(),
            "more than 10000 values",
        ),
        ("evaluations.npz", b"PK", "no zip file"),
        ("evaluations.npz", None, "no evaluations"),
    ],
)
def test_files_that_mean_harm_are_passed_over(name, content, reason, tmp_path, capsys):
    good, bad = (leave_run(tmp_path, seed, [5.0]) for seed in (0, 1))
    if content is None:
        (bad / name).unlink()
    else:
        (bad / name).write_bytes(content)
    main(["compare", str(good), str(bad)])
    output = capsys.readouterr()
    assert reason in output.err
    assert "1 run " in output.out


def test_python_objects_in_settings_are_not_made(tmp_path, capsys):
    folder = leave_run(tmp_path, 0, [5.0])
    harm = "n_envs: !!python/object/apply:os.system ['touch harm']\n'\\e[2Jname': '\\e[2J'\n"
    (folder / TASK / "config.yml").write_text('"\\e[2Jname": "\\e[2J"\n' + harm.splitlines()[0])
    leave_run(tmp_path, 1, [5.0])
    text = compare(capsys, tmp_path)
    assert not Path("harm").exists()
    assert "\x1b" not in text
    assert "\\x1b[2Jname" in text


def test_arrays_that_say_that_they_are_huge_are_refused(tmp_path):
    folder = leave_run(tmp_path, 0, [5.0])
    header = (
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }".ljust(118)
    )
    with zipfile.ZipFile(folder / "evaluations.npz", "w") as archive:
        archive.writestr("timesteps.npy", header)
        archive.writestr("results.npy", header)
    with pytest.raises(RefusedModelError, match="no numbers, or fewer"):
        read_run(folder)


@pytest.mark.parametrize("arguments", [["nowhere"], ["."]])
def test_where_there_is_no_run_that_is_said(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"no folder|no run"):
        main(["compare", *arguments])
