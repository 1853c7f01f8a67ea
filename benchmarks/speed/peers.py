"""
Tianshou's and skrl's TRPO at the same work. Both are optional: ``pip install 'sb3-trpo[bench]'``.

What they can't be given: Tianshou's number of conjugate gradient iterations is fixed, and its critic takes steps on
the whole batch only; skrl computes advantages in a Python loop inside its update (here they are handed to it, as they
are to everybody else).
"""

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import gymnasium as gym
import torch as th
from torch import nn
from torch.distributions import Independent, Normal

from speed.measure import Contender
from speed.workload import TASK, Workload

CG_ITERATIONS = 10
# Full-batch steps of Tianshou's critic in ``learn()``, as in its own recipe for MuJoCo.
TIANSHOU_CRITIC_STEPS = 20
ROLLOUT = 2048
# As sb3-contrib's defaults: 15 iterations, 10 epochs of 2048 / 128 minibatches.
LEARN_CG_ITERATIONS, N_EPOCHS, N_MINIBATCHES = 15, 10, 16


def spaces_of(workload: Workload) -> tuple[gym.spaces.Box, gym.spaces.Box, list[int]]:
    """Return the spaces of observations and actions, and the widths of the hidden layers."""
    widths = [
        len(tensor)
        for name, tensor in workload.policy_state.items()
        if name.startswith("mlp_extractor.policy_net") and name.endswith("weight")
    ]
    return workload.env.observation_space, workload.env.action_space, widths  # type: ignore[return-value]


def copy_network(modules: Iterable[nn.Module], state: dict[str, th.Tensor], *prefixes: str) -> None:
    """
    Copy a network's weights out of an SB3 policy.

    :param modules: whose linear layers get the weights
    :param state: of an SB3 policy
    :param prefixes: of its layers, in the order of evaluation
    """
    values = [state[name] for prefix in prefixes for name in state if name.startswith(prefix)]
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    with th.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


# ---- Tianshou ----


def make_tianshou(obs_space: gym.spaces.Box, action_space: gym.spaces.Box, widths: list[int], critic_steps: int) -> Any:
    """Return Tianshou's TRPO, with tanh networks and a state-independent σ, as SB3 has them."""
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.modelfree.trpo import TRPO
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

    nets = [Net(state_shape=obs_space.shape, hidden_sizes=widths, activation=nn.Tanh) for _ in range(2)]
    actor = ContinuousActorProbabilistic(preprocess_net=nets[0], action_shape=action_space.shape, unbounded=True)
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda parameters: Independent(Normal(*parameters), 1),
        action_space=action_space,
        observation_space=obs_space,
        action_scaling=False,
    )
    critic = ContinuousCritic(preprocess_net=nets[1])
    return TRPO(
        policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=1e-3), max_kl=0.01, optim_critic_iters=critic_steps
    )


def tianshou_update(workload: Workload) -> Contender:
    """
    Make Tianshou's update.

    :param workload: policy and rollout
    :return: its policy step and one full-batch step of its critic, advantages being known
    """
    from tianshou.data import Batch

    algorithm = make_tianshou(*spaces_of(workload), critic_steps=1)
    actor = algorithm.policy.actor
    flat = {name: array.reshape(workload.n_samples, -1) for name, array in workload.rollout.items()}
    advantages = th.as_tensor(flat["advantages"].ravel())
    batch = Batch(
        obs=flat["observations"],
        act=th.as_tensor(flat["actions"]),
        adv=(advantages - advantages.mean()) / advantages.std(),
        returns=th.as_tensor(flat["returns"].ravel()),
        logp_old=th.as_tensor(flat["log_probs"].ravel()),
        info=Batch(),
    )

    def prepare() -> None:
        state = workload.policy_state
        copy_network([actor.preprocess, actor.mu], state, "mlp_extractor.policy_net", "action_net")
        copy_network([algorithm.critic], state, "mlp_extractor.value_net", "value_net")
        with th.no_grad():
            actor.sigma_param.copy_(state["log_std"].view_as(actor.sigma_param))
        algorithm.train()

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            algorithm._update_with_batch(batch, None, 1)

    return Contender(run, prepare)


def tianshou_learn(n_steps: int, rollout: int = ROLLOUT) -> Contender:
    """
    Make Tianshou's training.

    :param n_steps: of the environment in one repetition
    :param rollout: steps per update
    :return: training in one environment, the critic by full-batch steps
    """
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams

    envs = DummyVectorEnv([lambda: gym.make(TASK)])
    spaces = gym.make(TASK)
    algorithm = make_tianshou(
        spaces.observation_space,  # type: ignore[arg-type]
        spaces.action_space,  # type: ignore[arg-type]
        [64, 64],
        TIANSHOU_CRITIC_STEPS,
    )
    collector: Any = Collector(algorithm, envs, VectorReplayBuffer(rollout, 1))
    parameters = OnPolicyTrainerParams(
        max_epochs=1,
        epoch_num_steps=n_steps,
        training_collector=collector,
        test_collector=None,
        collection_step_num_env_steps=rollout,
        batch_size=None,
        show_progress=False,
        verbose=False,
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            algorithm.run_training(parameters)

    return Contender(run)


# ---- skrl ----


def make_skrl(
    obs_space: gym.spaces.Box,
    action_space: gym.spaces.Box,
    widths: list[int],
    memory_size: int,
    **cfg: Any,
) -> Any:
    """Return skrl's TRPO agent, with networks as SB3 has them, and with a memory."""
    from skrl.agents.torch.trpo import TRPO
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model

    def network(n_out: int) -> nn.Sequential:
        sizes = [obs_space.shape[0], *widths]
        layers = [layer for pair in zip(sizes, widths, strict=False) for layer in (nn.Linear(*pair), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(widths[-1], n_out))

    shared: dict[str, Any] = {"observation_space": obs_space, "action_space": action_space, "device": "cpu"}

    class Policy(GaussianMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **shared)
            GaussianMixin.__init__(self)
            self.net = network(action_space.shape[0])
            self.log_std_parameter = nn.Parameter(th.zeros(action_space.shape[0]))

        def compute(self, inputs: Any, role: str = "") -> Any:
            return self.net(inputs["observations"]), {"log_std": self.log_std_parameter}

    class Value(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **shared)
            DeterministicMixin.__init__(self)
            self.net = network(1)

        def compute(self, inputs: Any, role: str = "") -> Any:
            return self.net(inputs["observations"]), {}

    experiment = {"directory": tempfile.gettempdir(), "write_interval": 0, "checkpoint_interval": 0}
    return TRPO(
        models={"policy": Policy(), "value": Value()},
        memory=RandomMemory(memory_size=memory_size, num_envs=1, device="cpu"),
        observation_space=obs_space,
        action_space=action_space,
        device="cpu",
        cfg={**cfg, "experiment": experiment, "grad_norm_clip": 0.0, "max_kl_divergence": 0.01},
    )


def skrl_update(workload: Workload) -> Contender:
    """
    Make skrl's update.

    :param workload: policy and rollout
    :return: its policy step and one full-batch step of its critic, advantages being known
    """
    n = workload.n_samples
    agent = make_skrl(
        *spaces_of(workload), n, rollouts=n, learning_epochs=1, mini_batches=1, conjugate_gradient_steps=CG_ITERATIONS
    )
    agent.init(trainer_cfg=_skrl_trainer_cfg(1))
    flat = {name: th.as_tensor(array.reshape(n, 1, -1)).float() for name, array in workload.rollout.items()}
    for name, source in (("observations", "observations"), ("actions", "actions"), ("log_prob", "log_probs")):
        agent.memory.tensors_view[name].copy_(flat[source].view(n, -1))
    agent.memory.filled = True
    agent._current_next_observations = flat["observations"][-1]
    advantages = (flat["advantages"] - flat["advantages"].mean()) / (flat["advantages"].std() + 1e-8)

    def prepare() -> None:
        state = workload.policy_state
        copy_network([agent.policy], state, "mlp_extractor.policy_net", "action_net")
        copy_network([agent.value], state, "mlp_extractor.value_net", "value_net")
        with th.no_grad():
            agent.policy.log_std_parameter.copy_(state["log_std"])
        agent.enable_models_training_mode(True)

    def run() -> None:
        with _known_advantages(flat["returns"], advantages):
            agent.update(timestep=0, timesteps=1)

    return Contender(run, prepare)


@contextlib.contextmanager
def _known_advantages(returns: th.Tensor, advantages: th.Tensor) -> Iterator[None]:
    from skrl.agents.torch.trpo import trpo

    with mock.patch.object(trpo, "compute_gae", return_value=(returns, advantages)):
        yield


def skrl_learn(n_steps: int, rollout: int = ROLLOUT) -> Contender:
    """
    Make skrl's training.

    :param n_steps: of the environment in one repetition
    :param rollout: steps per update
    :return: training in one environment
    """
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.trainers.torch import SequentialTrainer

    env: Any = wrap_env(gym.make(TASK), verbose=False)
    agent = make_skrl(
        env.observation_space,
        env.action_space,
        [64, 64],
        rollout,
        rollouts=rollout,
        learning_epochs=N_EPOCHS,
        mini_batches=N_MINIBATCHES,
        conjugate_gradient_steps=LEARN_CG_ITERATIONS,
        time_limit_bootstrap=True,
    )
    trainer = SequentialTrainer(env=env, agents=agent, cfg=_skrl_trainer_cfg(n_steps))
    return Contender(trainer.train)


def _skrl_trainer_cfg(n_steps: int) -> Any:
    from skrl.trainers.torch.sequential import SequentialTrainerCfg

    return SequentialTrainerCfg(
        timesteps=n_steps, headless=True, disable_progressbar=True, close_environment_at_exit=False
    )
