"""
Policies that leave Stable-Baselines3: one module from raw observations to actions, and its file in ONNX's format.
"""

import contextlib
import copy
import inspect
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import nn

from sb3_trpo.saved_models.atomic import atomic_write
from sb3_trpo.trust_region.shared_switches import skip_distribution_checks
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.trials import some_observations
from sb3_trpo.validation.values import UserError, short, warn_user

Observations: TypeAlias = th.Tensor | dict[str, th.Tensor]

# States on which a file is compared with the policy before it is kept.
N_CHECKS = 16
# Two programs round differently.
RTOL, ATOL = 1e-4, 1e-4


class DeployedPolicy(nn.Module):
    """
    A policy with all that surrounds it: raw observations in, actions of ``predict(..., deterministic=True)`` out.

    It is a copy, on the CPU: the model goes on training without it. ``VecNormalize`` is baked in with the statistics
    that it has now. Observations have the shape and dtype of the space of the environments below ``VecNormalize``, with
    a batch dimension in front; images have their channels first.

    :param model: the model, of TRPO, PPO or A2C
    :param normalization: the ``VecNormalize`` that the policy was trained with; None takes that of the model's
        environments, if it has some
    :raises UserError: if the policy needs more than observations, or a wrapper around ``VecNormalize`` changes them
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, model: OnPolicyAlgorithm, normalization: VecNormalize | None = None) -> None:
        super().__init__()
        _check_policy(model)
        if normalization is None and model.get_env() is None:
            warn_user(
                "The model has no environments, and so no VecNormalize. If it was trained in one, give it: "
                "normalization=VecNormalize.load(path, env). If not, load the model with its environments: env=..."
            )
        normalization = normalization or model.get_vec_normalize_env()
        for env in (model.get_env(), normalization):
            _check_wrappers(env, normalization)
        # Of what the environments give, before it is normalised.
        self.observation_space = _raw_space(model.observation_space, normalization)
        self.policy = _copy(model.policy).cpu().eval().requires_grad_(False)
        self.normalizers = nn.ModuleDict(_make_normalizers(normalization))
        space = model.action_space
        self._shape = space.shape or ()
        self._is_box = isinstance(space, spaces.Box)
        if isinstance(space, spaces.Box):
            self.register_buffer("low", th.as_tensor(space.low))
            self.register_buffer("high", th.as_tensor(space.high))
        self.eval()

    def forward(self, observations: Observations) -> th.Tensor:
        """
        Act.

        :param observations: N observations, or a dictionary of them
        :return: N actions
        """
        if isinstance(observations, dict):
            seen: Observations = {key: self._normalize(key, value) for key, value in observations.items()}
        else:
            seen = self._normalize("observation", observations)
        # The checks of torch's distributions depend on the data, which exporters can't follow.
        with skip_distribution_checks():
            actions = self.policy._predict(seen, deterministic=True).reshape(-1, *self._shape)
        if not self._is_box:
            return actions
        if self.policy.squash_output:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return actions.clamp(self.low, self.high)

    def _normalize(self, key: str, observations: th.Tensor) -> th.Tensor:
        if key not in self.normalizers:
            return observations
        normalized: th.Tensor = self.normalizers[key](observations)
        return normalized


class _Normalizer(nn.Module):
    """
    ``VecNormalize`` for one array of observations, in double precision, as NumPy computes it.

    :param statistics: mean and variance
    :param clip: the largest number that comes out
    :param epsilon: what is added to the variance
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, statistics: RunningMeanStd, clip: float, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("mean", th.as_tensor(statistics.mean, dtype=th.float64))
        self.register_buffer("std", th.as_tensor(np.sqrt(statistics.var + epsilon), dtype=th.float64))
        self.clip = clip

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return ((observations.double() - self.mean) / self.std).clamp(-self.clip, self.clip).float()


def export_onnx(
    model: OnPolicyAlgorithm, path: str | pathlib.Path, normalization: VecNormalize | None = None
) -> pathlib.Path:
    """
    Write a policy to a file that ONNX Runtime runs: raw observations in, deterministic actions out.

    The input is called ``observation``, or has the names of a Dict's keys, and the output ``action``. The batch
    dimension is free. The file is written only if ONNX Runtime gives the actions of ``predict`` for it.

    :param model: the model, of TRPO, PPO or A2C
    :param path: the path of the file; ``.onnx`` is added to a path without an ending
    :param normalization: as in ``DeployedPolicy``
    :return: the path of the file
    :raises UserError: as ``DeployedPolicy`` does
    :raises RuntimeError: if ONNX Runtime's actions are not those of ``predict``
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs onnx, onnxscript and onnxruntime ({error}): install them with {how_to_install('onnx')}."
        ) from error
    _check_policy(model)
    normalization = normalization or model.get_vec_normalize_env()
    policy = DeployedPolicy(model, normalization)
    content = _to_onnx(policy)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _check_actions(session, model, policy.observation_space, normalization)
    target = pathlib.Path(path)
    target = target if target.suffix else target.with_suffix(".onnx")
    with atomic_write(target, "onnx") as file:
        file.write(content)
    return target


def _to_onnx(policy: DeployedPolicy) -> bytes:
    example = some_observations(policy.observation_space, 2)
    batch = {0: th.export.Dim("batch")}
    if isinstance(example, dict):
        observations: Observations = {key: th.as_tensor(value) for key, value in example.items()}
        shapes: Any = dict.fromkeys(example, batch)
        names = list(example)
    else:
        observations, shapes, names = th.as_tensor(example), batch, ["observation"]
    with _hush_exporter():
        program = th.onnx.export(
            policy,
            kwargs={"observations": observations},
            input_names=names,
            output_names=["action"],
            dynamic_shapes={"observations": shapes},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextlib.contextmanager
def _hush_exporter() -> Iterator[None]:
    """Leave out what PyTorch's exporter says of its own code, and of torchvision, which it does without."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        logger.addFilter(_is_error)
        try:
            yield
        finally:
            logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _check_actions(
    session: Any, model: OnPolicyAlgorithm, space: spaces.Space[Any], normalization: VecNormalize | None
) -> None:
    observations = some_observations(space, N_CHECKS)
    inputs = observations if isinstance(observations, dict) else {"observation": observations}
    (actions,) = session.run(None, inputs)
    seen: Any = observations if normalization is None else normalization.normalize_obs(observations)
    expected, _ = model.predict(seen, deterministic=True)
    if not np.allclose(actions, expected, RTOL, ATOL):
        largest = np.abs(np.asarray(actions, np.float64) - expected).max()
        raise RuntimeError(
            f"ONNX Runtime's actions differ from those of predict by up to {largest:.2g}; no file was written."
        )


def _copy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    Copy a policy, whatever it has computed last.

    Its distribution may hold tensors with a gradient, which torch does not copy: the noise of gSDE, before the first
    action of a policy that was loaded, or means and deviations of which the caller asked for the gradient.

    :param policy: the policy
    :return: the copy
    """
    without_gradient: dict[int, Any] = {}
    found: list[Any] = [policy.action_dist]
    while found:
        value = found.pop()
        if isinstance(value, th.Tensor) and not value.is_leaf:
            without_gradient[id(value)] = value.detach().clone()
        elif isinstance(value, (list, tuple)):
            found += value
        elif isinstance(value, (Distribution, th.distributions.Distribution)):
            found += vars(value).values()
    return copy.deepcopy(policy, without_gradient)


def _raw_space(seen: spaces.Space[Any], normalization: VecNormalize | None) -> spaces.Space[Any]:
    """
    Find the space of observations before they are normalised.

    :param seen: the observation space of the policy
    :param normalization: what normalises
    :return: the space
    :raises UserError: if another wrapper has changed what was normalised
    """
    if normalization is None or not normalization.norm_obs:
        return seen
    raw, normalized = normalization.venv.observation_space, normalization.observation_space
    if isinstance(seen, spaces.Dict) and isinstance(raw, spaces.Dict) and isinstance(normalized, spaces.Dict):
        keys = normalization.norm_obs_keys or []
        fits = all(key in seen.spaces and normalized[key] == seen[key] for key in keys)
        raw = spaces.Dict({key: raw[key] if key in keys else space for key, space in seen.items()}) if fits else raw
    else:
        fits = normalized == seen
    if not fits:
        raise UserError(
            f"The policy sees observations of {seen}, but VecNormalize gives {normalized}: what VecNormalize gives "
            "has to reach the policy as it is to be baked in."
        )
    return raw


def _check_wrappers(env: VecEnv | None, normalization: VecNormalize | None) -> None:
    """
    Look for wrappers that change observations and can't be baked in.

    :param env: the outermost environments; None if there are none
    :param normalization: what is baked in
    :raises UserError: if there is a second ``VecNormalize``
    """
    while isinstance(env, VecEnvWrapper):
        kind = type(env)
        if isinstance(env, VecNormalize) and env is not normalization and env.norm_obs:
            raise UserError(
                "The environments are in two VecNormalize, one in the other, but only one can be baked in: train with "
                "one."
            )
        if not kind.__module__.startswith(("stable_baselines3.", "sb3_trpo.")):
            warn_user(
                f"The environments are in {kind.__name__}, which may change observations: what it does to them is not "
                "baked in, and has to be done to what the deployed policy gets."
            )
        env = env.venv


def _make_normalizers(normalization: VecNormalize | None) -> dict[str, _Normalizer]:
    if normalization is None or not normalization.norm_obs:
        return {}
    statistics: Any = normalization.obs_rms
    if not isinstance(statistics, dict):
        statistics = {"observation": statistics}
    return {key: _Normalizer(value, normalization.clip_obs, normalization.epsilon) for key, value in statistics.items()}


def _check_policy(model: object) -> None:
    if not isinstance(model, BaseAlgorithm):
        raise UserError(f"model is {short(model)}, but must be a model of TRPO, PPO or A2C, such as TRPO.load(path).")
    policy = model.policy
    if isinstance(policy, ActorCriticPolicy):
        parameters = list(inspect.signature(policy.get_distribution).parameters.values())
        if all(parameter.default is not parameter.empty for parameter in parameters[1:]):
            return
    raise UserError(
        f"The policy is a {type(policy).__name__}, but only policies that act on the observation alone can be deployed "
        "in this way: masks and memory have to be passed on from step to step."
    )
