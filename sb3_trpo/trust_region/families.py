"""
Which family an action distribution belongs to.

torch's distribution inside SB3's decides. So masked categoricals need no entry of their own, nor do squashed Gaussians
and gSDE: both are Gaussians before a bijection, which does not change KL.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch as th
from stable_baselines3.common import distributions as sb3_distributions
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Independent,
    Laplace,
    LogNormal,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
)
from torch.distributions import Distribution as TorchDistribution

from sb3_trpo.trust_region.kl import (
    BernoulliFamily,
    CategoricalFamily,
    DistributionFamily,
    DistributionParameters,
    GaussianFamily,
)
from sb3_trpo.trust_region.torch_family import BetaFamily, LaplaceFamily, TorchFamily
from sb3_trpo.validation.trials import some_observations
from sb3_trpo.validation.values import UserError

MakeFamily = Callable[[Any], DistributionFamily[Any]]
# States that a policy is tried on: a number that no action space is likely to have for its size.
_N_TRIED = 13


def _categoricals(distribution: Categorical | OneHotCategorical) -> CategoricalFamily:
    # An axis between that of the states and that of the choices is one of sub-actions.
    n_sub_actions = distribution.batch_shape[1:].numel()
    return CategoricalFamily([distribution.logits.shape[-1]] * n_sub_actions)


_FAMILIES: dict[type[TorchDistribution], MakeFamily] = {
    Normal: lambda _: GaussianFamily(),
    LogNormal: lambda _: GaussianFamily(),
    Categorical: _categoricals,
    OneHotCategorical: _categoricals,
    Bernoulli: lambda _: BernoulliFamily(),
    Beta: BetaFamily,
    Laplace: LaplaceFamily,
}


def register_family(kind: type[TorchDistribution], make_family: MakeFamily) -> None:
    """
    Tell TRPO how to measure the actions of a policy of one's own.

    Most policies need no such call: where ``torch.distributions.kl_divergence`` has a rule for the distribution, TRPO
    takes KL and its curvature from there. A distribution that torch has no rule for needs one. One whose metric is
    known in closed form gets faster.

    :param kind: a class of torch's distributions; its subclasses count as it, unless they have an entry of their own
    :param make_family: a function that gives, for a distribution of this class, its ``DistributionFamily``
    :raises UserError: if either is of another kind
    """
    if not (isinstance(kind, type) and issubclass(kind, TorchDistribution)):
        raise UserError(f"kind is {kind!r}, but must be a subclass of torch.distributions.Distribution.")
    if not callable(make_family):
        raise UserError(f"make_family is {make_family!r}, but must be a function of a distribution.")
    _FAMILIES[kind] = make_family


def family_and_z(distribution: Distribution) -> tuple[DistributionFamily[Any], DistributionParameters]:
    """
    Find the family that an action distribution belongs to, and its parameters there.

    :param distribution: SB3's distribution of N states, with its parameters set
    :return: the family, and z
    :raises UserError: if there is no such family
    """
    parts = [_unwrapped(part, distribution) for part in torch_distributions(distribution)]
    families = [_family_of(part) for part in parts]
    zs = [family.z_of(part) for family, part in zip(families, parts, strict=True)]
    if len(families) == 1:
        return families[0], zs[0]
    categoricals = [family for family in families if isinstance(family, CategoricalFamily)]
    if len(categoricals) == len(families):
        sizes = [size for family in categoricals for size in family.sizes]
        return CategoricalFamily(sizes), (th.cat([logits for (logits,) in zs], dim=1),)
    return ProductFamily(families, [len(z) for z in zs]), tuple(part for z in zs for part in z)


def torch_distributions(distribution: Distribution) -> Sequence[TorchDistribution]:
    """
    Find torch's distributions inside one of SB3's.

    :param distribution: SB3's distribution, with its parameters set
    :return: one distribution, or one for each sub-action
    :raises UserError: if there is none
    """
    # sb3-contrib's masked sub-actions keep theirs under the second name.
    for name in ("distribution", "distributions"):
        inner = getattr(distribution, name, None)
        if isinstance(inner, TorchDistribution):
            return [inner]
        if isinstance(inner, (list, tuple)) and inner and all(isinstance(part, TorchDistribution) for part in inner):
            return inner
    inner = getattr(distribution, "distribution", None)
    raise UserError(
        f"The policy's action distribution is {type(distribution).__name__} over {type(inner).__name__}, but its "
        "attribute `distribution` must be one of torch.distributions, or a list of them."
    )


def _unwrapped(inner: TorchDistribution, distribution: Distribution) -> TorchDistribution:
    """
    Take off what does not change KL: which axes count as one event, and a bijection of the actions.

    :param inner: torch's distribution
    :param distribution: SB3's distribution around it, for error messages
    :return: the distribution underneath, with an axis of states
    :raises UserError: if the bijection is learned, or there is no axis of states
    """
    while True:
        if isinstance(inner, Independent):
            inner = inner.base_dist
        elif type(inner) is TransformedDistribution:
            # A bijection that is learned moves the actions too, which KL of what is underneath would not show.
            tensors = [value for transform in inner.transforms for value in vars(transform).values()]
            if any(isinstance(value, th.Tensor) and value.requires_grad for value in tensors):
                raise UserError(
                    f"The policy's action distribution is {type(distribution).__name__} over a "
                    "TransformedDistribution whose transform depends on the policy's parameters; KL is not known then."
                )
            inner = inner.base_dist
        else:
            break
    if len(inner.batch_shape) == 0:
        raise UserError(
            f"The policy's action distribution is {type(distribution).__name__} over {type(inner).__name__} of batch "
            "shape (), but must have one distribution for each state."
        )
    return inner


def _family_of(inner: TorchDistribution) -> DistributionFamily[Any]:
    for kind in type(inner).__mro__:
        if kind in _FAMILIES:
            return _FAMILIES[kind](inner)
    return TorchFamily(inner)


class ProductFamily(DistributionFamily[Any]):
    """
    Sub-actions that are independent of each other and of different families.

    :param families: the family of each sub-action
    :param n_tensors: the number of tensors in z for each of them
    """

    def __init__(self, families: Sequence[DistributionFamily[Any]], n_tensors: Sequence[int]) -> None:
        self.families = families
        self._n_tensors = n_tensors

    def z_of(self, distribution: Sequence[TorchDistribution]) -> DistributionParameters:
        """Read the parameters of each sub-action, one after another."""
        pairs = zip(self.families, distribution, strict=True)
        return tuple(part for family, inner in pairs for part in family.z_of(inner))

    def compute_kl(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        """Add up KL over the sub-actions."""
        parts = zip(self.families, self._split(old), self._split(new), strict=True)
        return th.stack([family.compute_kl(old_i, new_i) for family, old_i, new_i in parts]).sum(dim=0)

    def metric(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by M(z), which has a block for each sub-action."""
        parts = zip(self.families, self._split(z), self._split(u), strict=True)
        return tuple(part for family, z_i, u_i in parts for part in family.metric(z_i, u_i))

    def metric_root(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by a square root of M(z), which has a block for each sub-action."""
        parts = zip(self.families, self._split(z), self._split(u), strict=True)
        return tuple(part for family, z_i, u_i in parts for part in family.metric_root(z_i, u_i))

    def _split(self, z: DistributionParameters) -> list[DistributionParameters]:
        rest = list(z)
        return [tuple(rest.pop(0) for _ in range(n)) for n in self._n_tensors]


@contextlib.contextmanager
def keep_distribution(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Put back, after the block, the distribution that a policy keeps of its last evaluation.

    One with a graph of autograd behind it could be neither copied nor pickled, nor could the policy.

    :param policy: the policy
    """
    action_dist = getattr(policy, "action_dist", None)
    kept = None if action_dist is None else dict(vars(action_dist))
    try:
        yield
    finally:
        if kept is not None:
            vars(action_dist).clear()
            vars(action_dist).update(kept)


def check_family(policy: ActorCriticPolicy) -> None:
    """
    Refuse a policy whose actions TRPO cannot measure, before anything is trained.

    SB3's own policies are known. Any other is tried on a few observations, which initialises its lazy layers, too.

    :param policy: the policy to train
    :raises UserError: if the KL divergence of its action distributions is not known
    """
    is_lazy = any(nn.parameter.is_lazy(tensor) for tensor in [*policy.parameters(), *policy.buffers()])
    if not is_lazy and _has_known_distribution(policy):
        return
    was_training = policy.training
    policy.set_training_mode(False)
    try:
        obs, _ = policy.obs_to_tensor(some_observations(policy.observation_space, _N_TRIED))
        with keep_distribution(policy):
            _check_distribution(policy.get_distribution(obs))
        if is_lazy:
            with th.no_grad():
                policy.predict_values(obs)
    except UserError:
        raise
    except Exception:
        # The policy takes more than observations, or not these. Then a rollout will tell.
        return
    finally:
        policy.set_training_mode(was_training)


def _has_known_distribution(policy: ActorCriticPolicy) -> bool:
    methods = ("get_distribution", "_get_action_dist_from_latent")
    return type(policy.action_dist).__module__ == sb3_distributions.__name__ and all(
        getattr(getattr(policy, name), "__func__", None) is getattr(ActorCriticPolicy, name) for name in methods
    )


def _check_distribution(distribution: Distribution) -> None:
    """
    Check that the KL divergence of a distribution is known, and has one value for each state.

    :param distribution: the distribution of ``_N_TRIED`` states
    :raises UserError: if it is not known, or counts other things than states
    """
    _, z = family_and_z(distribution)
    if any(len(part) != _N_TRIED for part in z):
        shapes = ", ".join(str(tuple(part.shape)) for part in z)
        raise UserError(
            f"The policy's action distribution is {type(distribution).__name__}, whose parameters for {_N_TRIED} "
            f"states are of shape {shapes}, but must have one row for each state."
        )
    for part in (_unwrapped(inner, distribution) for inner in torch_distributions(distribution)):
        family = _family_of(part)
        if isinstance(family, TorchFamily):
            family.check(family.z_of(part))
