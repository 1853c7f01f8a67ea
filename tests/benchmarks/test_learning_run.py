"""
One training run of the learning benchmarks.
"""

from campaign.learning_run import PROTOCOL, learning_run
from campaign.specification import RunSpecification

AVERAGE = [{"sb3_trpo.PolicyAverage": {"share": 1.0}}]


def specification(**hyperparams) -> RunSpecification:
    protocol = {**PROTOCOL, "eval_freq": 256, "n_eval_episodes": 2, "n_final_episodes": 3}
    hyperparams = {"policy": "MlpPolicy", "n_envs": 2, "n_steps": 64, "normalize": True, **hyperparams}
    return RunSpecification("learning", "Pendulum-v1", "sb3_trpo", 0, 512, hyperparams, protocol)


def test_callbacks_of_the_hyperparameters_are_called():
    """The policy is evaluated as it is until training ends, and then what the callback has made of it."""
    (plain, plain_curve), (averaged, averaged_curve) = (
        learning_run(run, lambda _: None) for run in (specification(), specification(callback=AVERAGE))
    )
    assert plain_curve["timesteps"].tolist() == averaged_curve["timesteps"].tolist() == [256, 512]
    assert plain_curve["results"][0].tolist() == averaged_curve["results"][0].tolist()
    assert plain["score"] != averaged["score"]
