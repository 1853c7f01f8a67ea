"""
A result is read as it was written, or not at all; a report says what it left out.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report
from campaign import results
from campaign.algorithms import read_hyperparameters
from campaign.readme import README, REPOSITORY, RESULTS
from campaign.records import load
from campaign.results import Status
from campaign.specification import RunSpecification

PROTOCOL = {"eval_freq": 500, "n_eval_episodes": 4, "n_final_episodes": 6}
RUN = RunSpecification("learning", "Hopper-v5", "sb3_trpo", 0, 1000, {"policy": "MlpPolicy", "gamma": 0.99}, PROTOCOL)


def save(out: Path, run: RunSpecification = RUN, score: float = 100.0) -> Path:
    path = run.path(out)
    rng = np.random.default_rng(run.seed)
    noise = rng.normal(size=6).round(3)
    returns = (score + noise - noise.mean()).tolist()
    values = {
        "score": float(np.mean(returns)),
        "final_returns": returns,
        "training_score": score / 2,
        "training_steps_per_second": 5000.0,
        "seconds": {"total": 90.0},
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "A"},
        "sources": {"commit": "unknown", "sb3_trpo_sha256": "0"},
    }
    results.write(path, run, values, curve(score, rng))
    return path


def curve(score: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "timesteps": np.array([512, 1024]),
        "results": score * np.array([[0.5], [1.0]]) + rng.normal(size=(2, 4)),
        "ep_lengths": np.full((2, 4), 7),
    }


def test_what_was_written_is_read(tmp_path):
    result = results.read(save(tmp_path))
    assert result.run == RUN
    assert result.values["score"] == pytest.approx(100.0)
    # The layout of EvalCallback's evaluations.npz, which RL Zoo's plots read.
    assert result.arrays.keys() == {"timesteps", "results", "ep_lengths"}
    assert results.status(RUN.path(tmp_path), RUN) == (Status.FINISHED, "")
    assert not list(tmp_path.rglob("*.tmp"))


def damage_truncated_json(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damage_empty_json(path: Path) -> None:
    path.write_text("")


def damage_missing_arrays(path: Path) -> None:
    path.with_suffix(".npz").unlink()


def damage_truncated_arrays(path: Path) -> None:
    arrays = path.with_suffix(".npz")
    arrays.write_bytes(arrays.read_bytes()[:-1])


def damage_arrays_of_another_run(path: Path) -> None:
    other = save(path.parent / "other", replace(RUN, seed=9)).with_suffix(".npz")
    other.replace(path.with_suffix(".npz"))


def damage_changed_configuration(path: Path) -> None:
    path.write_text(path.read_text().replace('"gamma": 0.99', '"gamma": 0.98'))


def damage_changed_score(path: Path) -> None:
    edit(path, score=1e6)


def damage_missing_episode(path: Path) -> None:
    edit(path, final_returns=json.loads(path.read_text())["final_returns"][:-1])


def damage_nan_return(path: Path) -> None:
    edit(path, final_returns=[None] * 6)


def damage_missing_key(path: Path) -> None:
    values = json.loads(path.read_text())
    del values["final_returns"]
    path.write_text(json.dumps(values))


def damage_json_only_arrays_left(path: Path) -> None:
    path.unlink()


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage", [function for name, function in sorted(globals().items()) if name.startswith("damage_")]
)
def test_a_damaged_result_is_found_out_and_never_averaged_in(tmp_path, damage):
    learning = tmp_path / "learning"
    path = save(learning, score=5000.0)
    for seed in (1, 2):
        save(learning, replace(RUN, seed=seed), score=100.0)
    damage(path)

    status, reason = results.status(path, RUN)
    assert status is Status.BROKEN
    assert reason

    records = load(learning)
    assert list(records.cells[RUN.task, RUN.variant].runs) == [1, 2]
    assert any("seed-0" in problem for problem in records.problems)

    text = make_report(tmp_path)
    assert "100.0 (**2 of 10**)" in text
    assert "seed-0" in text.partition("## Remarks")[2]


def test_a_run_with_other_settings_is_told_apart_and_the_difference_named(tmp_path):
    path = save(tmp_path)
    wanted = replace(RUN, hyperparams={"policy": "MlpPolicy", "gamma": 0.98, "n_envs": 8})
    status, reason = results.status(path, wanted)
    assert status is Status.DIFFERENT
    assert reason == "hyperparams.gamma 0.99 there, 0.98 here, hyperparams.n_envs unset there, 8 here"


def test_runs_with_different_settings_are_not_averaged(tmp_path):
    save(tmp_path)
    save(tmp_path, replace(RUN, seed=1, hyperparams={"policy": "MlpPolicy", "gamma": 0.98}))
    records = load(tmp_path)
    assert not records.cells
    assert "different settings" in records.problems[0]


def make_report(results_folder: Path) -> str:
    target, readme = results_folder / "RESULTS.md", results_folder / "README.md"
    readme.write_text(f"before\n{RESULTS.start}\n{RESULTS.end}\nafter\n")
    report.make_report(results_folder, target, results_folder / "picture.png", readme)
    return target.read_text()


def test_an_empty_folder_makes_a_report_that_says_so(tmp_path):
    text = make_report(tmp_path)
    assert text.count("No runs yet.") == 13
    assert "![" not in text
    assert f"{RESULTS.start}\n{RESULTS.end}" in (tmp_path / "README.md").read_text()


def test_a_complete_cell_is_judged_by_its_target(tmp_path):
    for seed in range(10):
        save(tmp_path / "learning", replace(RUN, seed=seed), score=3700.0 + 10 * seed)
        save(tmp_path / "learning", replace(RUN, seed=seed, algo="ppo"), score=2000.0 + 10 * seed)
    text = make_report(tmp_path)
    assert "| Hopper-v5 | 3618 | 3650 | 3745 (10) | reached | 0.01 | 0.13 | reached |" in text
    assert "| Hopper-v5 | PPO (SB3) | 10, 10 | 1700 | [1672, 1728] |" in text
    # Half of 3700 at the first evaluation, all of it at the second.
    assert "2000: 1k (10 of 10) | 3000: 1k (10 of 10) | 3600: 1k (10 of 10)" in text
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    readme = (tmp_path / "README.md").read_text().splitlines()
    assert readme[4] == "| Hopper-v5 | 3745 ± 30.3 (10) | 2045 ± 30.3 (10) |"
    assert "**" not in text.partition("| Hopper-v5 | TRPO")[2].partition("\n")[0]


def test_the_same_files_make_the_same_report(tmp_path):
    save(tmp_path / "learning")
    save(tmp_path / "learning", replace(RUN, seed=1), score=120.0)
    texts = {make_report(tmp_path) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"sources": {"sb3_trpo_sha256": "1"}}, "2 states of the package's sources: 0 (1 runs); 1 (1 runs)."),
        ({"versions": {"torch": "2.12.0"}}, "2 sets of versions: torch 2.13.0 (1 runs); torch 2.12.0 (1 runs)."),
        ({"machine": {"cpu": "B"}}, "2 kinds of processor: A (1 runs); B (1 runs)."),
    ],
)
def test_runs_of_different_origin_are_said_to_be(tmp_path, change, remark):
    save(tmp_path / "learning")
    path = save(tmp_path / "learning", replace(RUN, seed=1))
    assert "The runs come from" not in make_report(tmp_path)
    edit(path, **change)
    assert make_report(tmp_path).count("The runs come from") == 1
    assert f"The runs come from {remark}" in make_report(tmp_path)


def test_hyperparameters_that_have_changed_since_are_named(tmp_path):
    shipped, _ = read_hyperparameters("sb3_trpo", "Hopper-v5")
    save(tmp_path / "learning", replace(RUN, hyperparams=shipped))
    save(tmp_path / "learning", replace(RUN, task="Ant-v5", hyperparams={**shipped, "gae_lambda": 0.123}))
    save(tmp_path / "sensitivity", replace(RUN, label="gae_lambda=0.5", hyperparams={**shipped, "gae_lambda": 0.5}))
    remarks = make_report(tmp_path).partition("## Remarks")[2]
    assert remarks.count("hyperparameters have changed since") == 1
    assert "- Ant-v5, TRPO (sb3_trpo): hyperparameters have changed since (" in remarks
    assert "hyperparams.gae_lambda 0.123 there, 0.8 here" in remarks


def test_labelled_runs_are_compared_with_the_standard_setting_on_their_seeds(tmp_path):
    for seed in range(4):
        save(tmp_path / "learning", replace(RUN, seed=seed), score=100.0 * (1 + seed))
    for seed in range(2):
        save(tmp_path / "sensitivity", replace(RUN, seed=seed, label="target_kl=0.05"), score=50.0)
    section = make_report(tmp_path).partition("## Sensitivity")[2]
    assert "| our hyperparameters | 150.0 ± 70.7 (**2 of 3**) |" in section
    assert "| TRPO (sb3_trpo), target_kl=0.05 | 50.0 ± 0.0 (**2 of 3**); -100 |" in section


def test_each_variant_is_compared_on_its_own_seeds(tmp_path):
    for seed, score in enumerate((100.0, 1000.0, 5000.0)):
        save(tmp_path / "learning", replace(RUN, seed=seed), score=score)
    for seed in range(2):
        save(tmp_path / "sensitivity", replace(RUN, seed=seed, label="gae_lambda=0.9"), score=550.0)
    save(tmp_path / "sensitivity", replace(RUN, seed=1, label="target_kl=0.05"), score=900.0)
    save(tmp_path / "sensitivity", replace(RUN, seed=7, label="target_kl=0.02"), score=900.0)
    section = make_report(tmp_path).partition("## Sensitivity")[2]
    assert "gae_lambda=0.9 | 550.0 ± 0.0 (**2 of 3**); +0 |" in section
    assert "target_kl=0.05 | 900.0 (**1 of 3**); -100 |" in section
    assert "target_kl=0.02 | 900.0 (**1 of 3**) |" in section


def test_variants_that_differ_by_more_than_chance_are_marked(tmp_path):
    for seed in range(10):
        save(tmp_path / "learning", replace(RUN, seed=seed), score=1000.0 + 10 * seed)
    for label, scores in {"lower": (500, 520, 510), "similar": (1030, 1070, 1040), "wide": (900, 1150, 1000)}.items():
        for seed, score in enumerate(scores):
            save(tmp_path / "ablations", replace(RUN, seed=seed, label=label), score=score)
    save(tmp_path / "ablations", replace(RUN, label="single"), score=0.0)
    section = make_report(tmp_path).partition("## Ablations")[2]
    assert "lower | 510.0 ± 10.0 (3); -500* |" in section
    assert "similar | 1047 ± 20.8 (3); +37 |" in section
    assert "wide | 1017 ± 125.8 (3); +7 |" in section
    assert "single | 0.0 (**1 of 3**); -1000* |" in section


def test_updates_that_made_j_lower_are_counted(tmp_path):
    protocol = {"stages": [100, 500], "n_updates": 5, "n_episodes": 20}
    run = replace(RUN, kind="improvement", protocol=protocol)
    noise = np.random.default_rng(0).normal(size=(10, 20))
    change = np.repeat([-10.0, 10.0], 5)[:, np.newaxis]
    arrays = {"returns_before": noise, "returns_after": noise[:, ::-1] + change, "timesteps": np.arange(10)}
    values = {"versions": {}, "machine": {"cpu": "A"}, "sources": {"commit": "unknown", "sb3_trpo_sha256": "0"}}
    results.write(run.path(tmp_path / "monotonic"), run, values, arrays)
    section = make_report(tmp_path).partition("## Monotonic improvement")[2]
    # Ours is to have three seeds here, ten in the table of returns.
    assert "| all | **1 of 3** | 10 | 50.0% | 50.0% [18.7%, 81.3%] | 50.0% | 50.0% | +0.0 |" in section
    assert "| from 0k |  | 5 | 100.0% | 100.0% [47.8%, 100.0%] | 100.0% | 0.0% | -10.0 |" in section


def test_tables_of_other_benchmarks_are_taken_over(tmp_path):
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed/TABLE.md").write_text("## Speed\n\nfast\n")
    assert "## Speed\n\nfast\n" in make_report(tmp_path)


def test_the_report_and_the_readme_show_what_was_measured(tmp_path):
    report_file = REPOSITORY / "benchmarks/RESULTS.md"
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text())
    report.make_report(REPOSITORY / "benchmarks/results", tmp_path / "RESULTS.md", tmp_path / "picture.png", readme)
    assert (tmp_path / "RESULTS.md").read_text() == report_file.read_text()
    assert readme.read_text() == README.read_text()
