"""
Tables of the rows that measure several things at once.
"""

from collections.abc import Iterator
from typing import Any

from campaign.tables import table

from speed.cells import OURS, THEIRS, Results, amount, equal_quality, judge, judge_at_most, of_row, with_quartiles
from speed.measure import ratio, spread
from speed.variants import PLAIN

# Of the time of sb3-contrib's TRPO over ours; PPO has no target.
MANY_AT_LEAST = {"train": 5.0, "learn": 3.0}
# Of the memory beyond the rollout, with ten times the samples.
MEMORY_GROWTH_AT_MOST = 1.25

MANY = """Sixteen pendulums in each environment: 48 observations, 16 torques, episodes of at most 300 steps, which begin
at different times. Policy and critic have layers of 256, 128 and 64 units with ELU. All three have 4 minibatches of a
rollout, 5 times: the TRPOs for their critics, PPO for everything. The policy steps have at most 15 CG iterations.
"""
MEMORY_OF_MANY = """
Memory that `train()` takes, each in a process of its own.
"""
# Of the plainest pipeline's speed.
SHARE_AT_LEAST = {"a callback that does nothing": 0.9}
OTHER_SHARE_AT_LEAST = 0.5
# Of sb3-contrib's time over ours: each, and more than half of them.
VARIANT_AT_LEAST, MOST_AT_LEAST = 1.5, 2.0


def many(found: Results) -> str:
    """Compare updates and training with thousands of environments."""
    lines: list[list[str]] = []
    for threads, measured in of_row(found, "many"):
        for what, at_least in MANY_AT_LEAST.items():
            for n_envs, of_size in measured["sizes"].items():
                lines += _peers_of(f"`{what}()`, {n_envs} environments", str(threads), of_size[what], at_least)
    header = ["what; peer", "threads", "ours", "peer", "ratio", "to reach", "direction", "critic loss"]
    return "\n".join([MANY, table(header, lines), *_memory_of_many(found)])


def _peers_of(what: str, threads: str, measured: dict[str, Any], at_least: float) -> Iterator[list[str]]:
    for peer, seconds in measured["seconds"].items():
        if peer != OURS:
            factor = ratio(seconds, measured["seconds"][OURS])
            goal = f"≥ {at_least:g}: {judge(factor.median, at_least)}" if peer == THEIRS else ""
            amounts = [amount(measured, OURS), amount(measured, peer)]
            compared = equal_quality(measured, peer)
            yield [f"{what}; {peer}", threads, *amounts, with_quartiles(factor), goal, *compared]


def _memory_of_many(found: Results) -> list[str]:
    """Write what an update takes beyond the rollout, with few samples and with many."""
    lines, least = [], 0.0
    for _, measured in of_row(found, "many"):
        for n_samples, by_name in measured.get("memory", {}).items():
            for name, values in by_name.items():
                beyond = values["extra"] - values["rollout"]
                goal = ""
                if name == OURS and not least:
                    least = beyond
                elif name == OURS:
                    growth = beyond / max(least, 1.0)
                    goal = f"{growth:.2f} times; ≤ {MEMORY_GROWTH_AT_MOST:g}: "
                    goal += judge_at_most(growth, MEMORY_GROWTH_AT_MOST)
                sizes = [f"{value:.0f} MiB" for value in (values["rollout"], values["extra"], beyond)]
                lines.append([name, f"{int(n_samples):,}", *sizes, goal])
    header = ["", "samples", "rollout", "extra", "extra beyond one copy of the rollout", "its growth"]
    return [MEMORY_OF_MANY, table(header, lines)] if lines else []


def variants(found: Results) -> str:
    """List pipelines of other kinds, beside our plainest one and beside sb3-contrib's of the same kind."""
    lines, factors = [], []
    for threads, measured in of_row(found, "variants"):
        ours, theirs = measured["seconds"][OURS], measured["seconds"][THEIRS]
        for name, seconds in ours.items():
            factors.append(ratio(theirs[name], seconds))
            beside = f"≥ {VARIANT_AT_LEAST:g}: {judge(factors[-1].median, VARIANT_AT_LEAST)}"
            rates = [f"{measured['steps'] / spread(times[name]).median:.0f}/s" for times in (ours, theirs)]
            line = [name, str(threads), *rates, with_quartiles(factors[-1]), beside, "", ""]
            if name != PLAIN:
                share, at_least = ratio(ours[PLAIN], seconds), SHARE_AT_LEAST.get(name, OTHER_SHARE_AT_LEAST)
                line[-2:] = [with_quartiles(share, 2), f"≥ {at_least:g}: {judge(share.median, at_least)}"]
            lines.append(line)
    header = ["what", "threads", "ours", "sb3-contrib", "ratio", "to reach", "ours over our plainest", "to reach"]
    n_above = sum(factor.median > MOST_AT_LEAST for factor in factors)
    most = "reached" if 2 * n_above > len(factors) else "**missed**"
    return (
        f"Above {MOST_AT_LEAST:g}, which most should be: {n_above} of {len(factors)}, {most}.\n\n{table(header, lines)}"
    )


def budget(found: Results) -> str:
    """List where the time of a training goes."""
    for _, measured in of_row(found, "budget"):
        whole = sum(measured["seconds"].values())
        parts = [*measured["seconds"].items(), ("whole", whole)]
        lines = [[part, f"{seconds:.1f} s", f"{seconds / whole:.1%}"] for part, seconds in parts]
        caption = f"One run of {measured['timesteps']:,} steps of {measured['task']}, with the options of `make train`."
        return f"{caption}\n\n{table(['part', 'time', 'share'], lines)}"
    return ""
