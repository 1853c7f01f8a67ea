"""
``sb3-trpo diagnose``: say why a run does not learn.

It reads the log of a run. With ``--env`` it also tries the task by random actions, and one update of TRPO on it. With
``--explain`` it prints what the documentation says of a finding.
"""

import argparse
import pathlib
from collections.abc import Sequence

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_trpo.diagnosis.diagnose import describe, diagnose
from sb3_trpo.diagnosis.explanations import explain
from sb3_trpo.diagnosis.finding import Finding
from sb3_trpo.self_test import check_algorithm, check_task
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.values import UserError

# Enough for episodes to end in it, and for an update to take a moment.
N_STEPS = 1024


def main() -> None:
    """
    Run the command with the arguments in ``sys.argv``.

    :raises UserError: if there is no log to read, or no such finding
    """
    parser = argparse.ArgumentParser(description="Say why a run does not learn, and what to change.")
    parser.add_argument("run", nargs="?", help="folder of a run, or a progress.csv", type=pathlib.Path)
    parser.add_argument("--html", metavar="FILE", help="write a report with plots", type=pathlib.Path)
    parser.add_argument("--env", metavar="ID", help="try this task, and an update of TRPO on it")
    parser.add_argument("--explain", metavar="FINDING", help="explain a finding, such as small-batch")
    args = parser.parse_args()
    if args.run is None and args.env is None and args.explain is None:
        parser.error("name the folder of a run, a task with --env, or a finding with --explain.")
    if args.html is not None and args.run is None:
        parser.error("--html shows a run: name its folder.")
    if args.explain is not None:
        print(explain(args.explain))
    if args.run is not None:
        diagnosis = diagnose(args.run)
        print(diagnosis)
        if args.html is not None:
            try:
                diagnosis.to_html(args.html)
            except OSError as error:
                raise UserError(str(error)) from error
            print(f"\nReport: {args.html}")
    if args.env is not None:
        findings = check_env(args.env)
        print(("\n" if args.run is not None else "") + (f"{args.env}: " + summary(findings)))
        for finding in findings:
            print(f"\n{describe(finding)}")


def check_env(env_id: str) -> list[Finding]:
    """
    Try a task, and an update of TRPO on it.

    :param env_id: the task's id
    :return: what is wrong with either
    """
    findings = check_task(lambda: gym.make(env_id))
    env = gym.make(env_id)
    try:
        return [*findings, *check_algorithm(TRPO(_policy(env.observation_space), env, n_steps=N_STEPS, device="cpu"))]
    finally:
        env.close()


def _policy(space: spaces.Space[object]) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def summary(findings: Sequence[Finding]) -> str:
    """
    Say how much active checks have found.

    :param findings: what they have found
    :return: a sentence
    """
    if not findings:
        return "nothing found by random actions, and an update is what it is taken for."
    return f"{len(findings)} finding{'s' if len(findings) > 1 else ''}."
