"""
The speed benchmarks: their arithmetic, that contenders get the same work, and each row on tiny sizes.
"""

import importlib.util
import time

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from speed import command_line, fisher, images, tables
from speed.command_line import main, measure
from speed.measure import Contender, alternate, ratio, slope, spread
from speed.quality import Judged, sb3_contrib_direction
from speed.rows import ROWS
from speed.run import Run, path_of, read
from speed.stopwatch import Stopwatch
from speed.updates import make_ppo_workload
from speed.workload import Setting, make_workload, resized
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.utils import set_random_seed
from torch.utils.flop_counter import FlopCounterMode

import sb3_trpo

TINY = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2}
SLOW_ROWS = {"images", "many", "policy-step", "growth", "learn-1", "wide", "wide-relu", "wider-relu", "wider-elu"}
SLOW_ROWS |= {"learn-subproc-8", "learn-subproc-64", "budget", "envpool", "lstm", "masks", "variants"}
positive = st.floats(1e-3, 1e3)


@pytest.fixture(scope="module")
def workload():
    return make_workload(Setting(TINY), n_updates=1)


# ---- arithmetic ----


@given(st.lists(positive, min_size=1, max_size=20), positive)
@settings(deadline=None, max_examples=30)
def test_spread_is_ordered_and_scales(values, factor):
    found, scaled = spread(values), spread([factor * value for value in values])
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert scaled.median == pytest.approx(factor * found.median)
    assert scaled.high - scaled.low == pytest.approx(factor * (found.high - found.low), abs=1e-9)


def test_spread_of_known_values():
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)


@given(st.lists(positive, min_size=1, max_size=20), positive)
@settings(deadline=None, max_examples=30)
def test_ratio_of_a_multiple_is_the_factor(values, factor):
    found = ratio([factor * value for value in values], values)
    assert (found.low, found.median, found.high) == pytest.approx((factor, factor, factor))


def test_ratio_is_that_of_the_medians():
    # The quotients are 1, 4 and 0.5: their median is 1, that of the medians 2.
    assert ratio([1.0, 4.0, 2.0], [1.0, 1.0, 4.0]).median == 2.0


@given(st.floats(-2, 3), positive)
@settings(deadline=None, max_examples=30)
def test_slope_is_the_exponent_of_a_power(exponent, factor):
    sizes = [10.0, 100.0, 300.0, 5000.0]
    assert slope(sizes, [factor * size**exponent for size in sizes]) == pytest.approx(exponent, abs=1e-6)


def test_contenders_take_turns_and_are_prepared():
    events = []

    def contender(name):
        return Contender(*(lambda what=what: events.append(f"{name} {what}") for what in ("run", "prepare", "after")))

    seconds = alternate({"a": contender("a"), "b": contender("b")}, repetitions=2, warm_up=1)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    assert [event for event in events if event.endswith("run")] == [
        "a run",
        "b run",
        "b run",
        "a run",
        "a run",
        "b run",
    ]
    assert all(events[events.index(f"{name} run") - 1] == f"{name} prepare" for name in "ab")
    # What the warm-up left behind is not looked at.
    assert [event for event in events if event.endswith("after")] == ["b after", "a after", "a after", "b after"]


def test_stopwatch_counts_each_moment_once():
    watch = Stopwatch()
    inner = watch.timed(lambda: time.sleep(0.002), "inner")
    outer = watch.timed(lambda: [inner() for _ in range(5)], "outer")
    start = time.perf_counter()
    outer()
    elapsed = time.perf_counter() - start
    assert watch.seconds["inner"] >= 5 * 0.002
    assert watch.seconds["inner"] + watch.seconds["outer"] <= elapsed


# ---- the same work for everybody ----


@pytest.mark.parametrize("algorithm", [sb3_trpo.TRPO, sb3_contrib.TRPO, stable_baselines3.PPO])
def test_every_update_starts_from_the_same_policy_and_rollout(workload, algorithm):
    is_ppo = algorithm is stable_baselines3.PPO
    work = make_ppo_workload(workload, {"n_steps": TINY["n_steps"]}) if is_ppo else workload
    update = work.update(algorithm)
    moments = [values["exp_avg"].clone() for values in workload.optimizer_state["state"].values()]
    assert moments
    for _ in range(2):
        update.prepare()
        loaded = update.model.policy.optimizer.state_dict()["state"].values()
        assert all(th.equal(values["exp_avg"], before) for values, before in zip(loaded, moments, strict=True))
        for name, tensor in update.model.policy.state_dict().items():
            assert th.equal(tensor, workload.policy_state[name])
        for name, array in workload.rollout.items():
            np.testing.assert_array_equal(getattr(update.model.rollout_buffer, name), array)
        update.model.train()
        moved = update.model.policy.state_dict()
        assert not th.equal(moved["action_net.weight"], workload.policy_state["action_net.weight"])
        assert not th.equal(moved["value_net.weight"], workload.policy_state["value_net.weight"])


def test_update_depends_on_nothing_but_the_workload_and_the_order_of_samples(workload):
    update = workload.update(sb3_trpo.TRPO)
    results = []
    for _ in range(2):
        update.prepare()
        set_random_seed(0)
        update.contender.run()
        results.append({name: tensor.clone() for name, tensor in update.model.policy.state_dict().items()})
    assert all(th.equal(results[0][name], results[1][name]) for name in results[0])


def test_critic_loss_is_the_mean_squared_error(workload):
    update = workload.update(sb3_trpo.TRPO)
    update.prepare()
    errors = workload.rollout["values"] - workload.rollout["returns"]
    assert update.critic_loss() == pytest.approx(float(np.square(errors).mean()), rel=1e-4)
    update.model.train()
    update.contender.after()
    # Two epochs on 64 samples help.
    assert update.critic_losses[0] < float(np.square(errors).mean())


def test_resized_workload_repeats_the_rollout(workload):
    larger = resized(workload, 150)
    assert larger.n_samples == 150
    np.testing.assert_array_equal(larger.rollout["observations"][64:128], workload.rollout["observations"])
    noisy = resized(workload, 150, noise=0.01).rollout["observations"]
    assert len(np.unique(noisy[:, 0, 0])) == 150
    np.testing.assert_allclose(noisy, larger.rollout["observations"], atol=0.1)


def judged(workload, n_iterations, rival, **changes):
    update = workload.update(Judged, cg_residual_tol=1e-6, preconditioner=None, **changes)
    update.model.rival, update.model.n_iterations = rival, n_iterations
    update.prepare()
    update.model.train()
    return update.model.verdict


def test_plain_conjugate_gradient_is_as_good_as_itself(workload):
    rival = sb3_contrib_direction(workload.update(sb3_contrib.TRPO))
    assert judged(workload, 5, rival, cg_max_steps=5)["to_plain"] == pytest.approx(1.0, abs=1e-5)
    assert judged(workload, 5, rival, cg_max_steps=1)["to_plain"] < 0.99


def test_direction_of_sb3_contrib_is_ours_with_six_times_the_damping(workload):
    # Its F is a mean over HalfCheetah's six actions. On a converged solution all parameters must find their place.
    rival = sb3_contrib_direction(workload.update(sb3_contrib.TRPO, cg_max_steps=100))
    found = judged(workload, 100, rival, cg_max_steps=100, cg_damping=0.6, cg_progress_tol=0.0)
    assert found["to_sb3_contrib"] == pytest.approx(1.0, abs=1e-3)


# ---- Fisher products ----


def flops_of(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_matrix_products_are_those_of_a_fisher_product(workload):
    layers = [17, 64, 64, 6]
    assert len(fisher.shapes(64, layers)) == 10
    assert flops_of(fisher.matrix_products(64, layers)) == fisher.flop(64, layers)
    product = fisher.our_product(workload)
    # In J v the row of ones that carries the biases counts as one input more of each layer.
    assert flops_of(product) == fisher.flop(64, layers) + 2 * 64 * sum(layers[1:])


# ---- images ----


def test_catch_is_an_environment():
    check_env(images.Catch())


def test_peak_of_memory_is_noticed():
    images.reset_peak()
    held = images.memory("VmRSS")
    # Gone at once, but for the peak.
    assert np.ones(64 * 2**20, dtype=np.uint8).all()
    assert 60 < images.memory("VmHWM") - held < 80
    images.reset_peak()
    assert images.memory("VmHWM") - held < 10


# ---- tables ----


def result(measured, quick=False, sources="abc"):
    return {
        "quick": quick,
        "load_before": 0.5,
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "CPU", "cores": 2},
        "sources": {"sb3_trpo_sha256": sources},
        "measured": measured,
    }


UPDATE = {
    "seconds": {"sb3_trpo": [0.1, 0.1, 0.1], "sb3-contrib": [0.5, 0.5, 0.5], "PPO": [0.4, 0.4, 0.4]},
    "quality": {"to_plain": [1.003, 1.001], "to_sb3_contrib": [1.2, 1.3], "iterations": [3.0, 3.0]},
    "critic_loss": {"sb3_trpo": [2.0, 2.0], "sb3-contrib": [2.0, 2.0], "before": [3.0]},
}


def test_comparisons_name_ratio_verdict_and_quality():
    contrib, ppo = tables.comparisons({("defaults", 1): result(UPDATE)}).splitlines()[2:]
    cells = [cell.strip() for cell in contrib.strip("|").split("|")]
    assert cells[1:6] == ["1", "100 ms", "500 ms", "5.0 [5.0, 5.0]", "≥ 4: reached"]
    assert cells[6:] == ["1.001; 1.200", "1.000 ± 0.000 (theirs ± 0.000)"]
    assert "≥ 8: **50% short**" in ppo


def test_what_is_not_of_equal_quality_is_marked():
    worse = {**UPDATE, "quality": {**UPDATE["quality"], "to_plain": [1.0, 0.98]}}
    worse["critic_loss"] = {**UPDATE["critic_loss"], "sb3_trpo": [2.1, 2.1]}
    line = tables.comparisons({("defaults", 1): result(worse)}).splitlines()[2]
    assert "0.980 **too low**" in line
    assert "**too high**" in line
    noisy = {**worse, "critic_loss": {**UPDATE["critic_loss"], "sb3_trpo": [1.5, 2.7]}}
    assert "too high" not in tables.comparisons({("defaults", 1): result(noisy)})


def test_steps_are_shown_per_second():
    measured = {"seconds": {"sb3_trpo": [2.0], "sb3-contrib": [6.0]}, "steps": 8000}
    assert "| 4000/s | 1333/s | 3.0 [3.0, 3.0] |" in tables.comparisons({("learn-1", 2): result(measured)})


def test_memory_is_judged_without_the_rollout():
    values = {"sb3_trpo": {"extra": 100.0, "rollout": 30.0}, "sb3-contrib": {"extra": 1000.0, "rollout": 30.0}}
    measured = {**UPDATE, "samples": 1024, "memory": values, "growing": {"16384": {"extra": 500.0, "rollout": 460.0}}}
    ours, _, growing = tables.memory({("images", 1): result(measured)}).splitlines()[2:]
    assert "| 30 MiB | 100 MiB | 70 MiB | 0.10 | ≤ 0.25: reached |" in ours
    assert "| 460 MiB | 500 MiB | 40 MiB |" in growing


def test_remarks_tell_what_the_figures_are_worth():
    found = {("defaults", 1): result(UPDATE), ("zoo", 1): result(UPDATE, quick=True, sources="def")}
    text = tables.remarks(found)
    assert "2 states" in text
    assert "--quick" in text
    assert "wide" in text.splitlines()[-1]
    assert "--quick" not in tables.remarks({("defaults", 1): result(UPDATE)})


def test_directions_are_told_by_their_worst():
    verdicts = [{"0.01": {"products": n, "15": q, "25": q - 0.1}} for n, q in ((4.0, 1.0), (5.0, 0.9))]
    text = tables.directions(
        {("direction", 1): result({"judged": [0, 1], "tasks": {"A": verdicts[:1], "B": verdicts}})}
    )
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines()[-3:])
    assert rows == {"A": "1.000, 0.900; 4.0", "B": "0.900, 0.800; 4.5", "all": "0.900, 0.800; 4.3"}


def test_a_gpus_section_has_no_targets_and_its_own_files():
    on_gpu = result(UPDATE) | {"device": "cuda"}
    on_gpu["machine"] = {"cpu": "CPU", "cores": 2, "gpus": ["GPU 1"]}
    points = [{"size": n, "seconds": {"sb3_trpo": [n]}, "cg_iterations": 3.0} for n in (1, 2)]
    growth = on_gpu | {"measured": {key: {"points": points, "slopes": {}} for key in ("samples", "parameters")}}
    text = tables.section({("defaults", 1): on_gpu, ("growth", 1): growth}, "speed-cuda")
    assert text.startswith("## Speed on a GPU\n")
    assert "speed.py --device cuda`" in text
    assert "CPU, 2 cores, GPU 1." in text
    assert "(results/speed-cuda/growth.png)" in text
    assert "≥" not in text
    # Rows that are measured on a CPU alone are not missing.
    assert "Not measured: zoo, wide, images." in text


def test_a_gpu_gets_the_rows_on_updates_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command_line, "measure", lambda name, run, out: asked.append((name, run.threads, run.device)))
    assert main(None, ["--device", "cuda", "--in-process", "--out", str(tmp_path)]) == 0
    assert asked == [(name, 1, "cuda") for name in ("defaults", "zoo", "wide", "growth", "images")]


def test_no_results_make_a_section_all_the_same():
    assert tables.section({}).startswith("## Speed\n")


# ---- rows ----


def marked(name):
    return pytest.param(name, marks=pytest.mark.slow) if name in SLOW_ROWS else name


@pytest.mark.parametrize("name", [marked(name) for name in ROWS])
def test_row_runs_and_makes_its_table(name, tmp_path):
    if name == "envpool" and not all(map(importlib.util.find_spec, ("envpool", "sb3_trpo.envpool"))):
        pytest.skip("EnvPool is not installed")
    threads = th.get_num_threads()
    measure(name, Run(threads=1, quick=True), tmp_path)
    th.set_num_threads(threads)
    values = read(tmp_path, name, 1)
    assert values["quick"]
    assert {"commit", "sb3_trpo_sha256"} <= set(values["sources"])
    text = tables.section(tables.load(tmp_path))
    assert "nan" not in text
    assert f"--only {name} " in values["command"]
    for peer in ("Tianshou", "skrl") if name in ("policy-step", "learn-1") else ():
        measured = values["measured"]
        assert (peer in measured["seconds"]) != (peer in measured["missing"])


def test_what_is_there_is_not_measured_again(tmp_path, capsys):
    measure("learn-8", Run(threads=1, quick=True), tmp_path)
    before = path_of(tmp_path, "learn-8", 1).read_bytes()
    arguments = ["--quick", "--only", "learn-8", "--threads", "1", "--out", str(tmp_path)]
    assert main(None, arguments) == 0
    assert "there already" in capsys.readouterr().out
    assert path_of(tmp_path, "learn-8", 1).read_bytes() == before
    assert (tmp_path / "TABLE.md").read_text().startswith("## Speed")


def test_half_written_file_counts_as_missing(tmp_path):
    path = path_of(tmp_path, "zoo", 1)
    path.write_text('{"format": 1, "measured"')
    assert read(tmp_path, "zoo", 1) is None
    assert tables.load(tmp_path) == {}


@pytest.mark.slow
def test_one_command_measures_in_a_process_of_its_own(tmp_path):
    arguments = ["--quick", "--only", "fisher", "--threads", "2", "--out", str(tmp_path)]
    assert main(None, arguments) == 0
    values = read(tmp_path, "fisher", 2)
    assert (values["torch_threads"], values["OMP_NUM_THREADS"]) == (2, "2")
