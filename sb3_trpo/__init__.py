"""
Trust region policy optimization for Stable-Baselines3.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sb3_trpo.policies.policies import (
    BetaCnnPolicy,
    BetaMultiInputPolicy,
    BetaPolicy,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
)
from sb3_trpo.trpo import TRPO

if TYPE_CHECKING:
    from sb3_trpo.callbacks.growing_horizon import GrowingHorizon
    from sb3_trpo.callbacks.policy_average import PolicyAverage
    from sb3_trpo.checkpoints import Checkpoint, Checkpointable
    from sb3_trpo.deployment import DeployedPolicy, export_onnx
    from sb3_trpo.diagnosis.diagnose import Diagnosis, diagnose
    from sb3_trpo.diagnosis.finding import Finding
    from sb3_trpo.envpool import make_envpool_vec_env
    from sb3_trpo.masks_and_memory.maskable import MaskableTRPO
    from sb3_trpo.masks_and_memory.maskable_recurrent import MaskableRecurrentTRPO
    from sb3_trpo.masks_and_memory.recurrent import RecurrentTRPO
    from sb3_trpo.self_test import check_algorithm, check_task
    from sb3_trpo.shipped.models import hyperparameters, make
    from sb3_trpo.trust_region.families import register_family
    from sb3_trpo.trust_region.kl import DistributionFamily

__version__ = "0.1.0"

__all__ = [
    "TRPO",
    "BetaCnnPolicy",
    "BetaMultiInputPolicy",
    "BetaPolicy",
    "Checkpoint",
    "Checkpointable",
    "CnnPolicy",
    "DeployedPolicy",
    "Diagnosis",
    "DistributionFamily",
    "Finding",
    "GrowingHorizon",
    "MaskableRecurrentTRPO",
    "MaskableTRPO",
    "MlpPolicy",
    "MultiInputPolicy",
    "PolicyAverage",
    "RecurrentTRPO",
    "check_algorithm",
    "check_task",
    "diagnose",
    "export_onnx",
    "hyperparameters",
    "make",
    "make_envpool_vec_env",
    "register_family",
]

# Imported when they are first asked for: training alone needs none of them, and EnvPool, RL Zoo and sb3-contrib are
# extras.
_LAZY = {
    "Checkpoint": "sb3_trpo.checkpoints",
    "Checkpointable": "sb3_trpo.checkpoints",
    "DeployedPolicy": "sb3_trpo.deployment",
    "Diagnosis": "sb3_trpo.diagnosis.diagnose",
    "DistributionFamily": "sb3_trpo.trust_region.kl",
    "Finding": "sb3_trpo.diagnosis.finding",
    "GrowingHorizon": "sb3_trpo.callbacks.growing_horizon",
    "MaskableRecurrentTRPO": "sb3_trpo.masks_and_memory.maskable_recurrent",
    "MaskableTRPO": "sb3_trpo.masks_and_memory.maskable",
    "PolicyAverage": "sb3_trpo.callbacks.policy_average",
    "RecurrentTRPO": "sb3_trpo.masks_and_memory.recurrent",
    "export_onnx": "sb3_trpo.deployment",
    "hyperparameters": "sb3_trpo.shipped.models",
    "make": "sb3_trpo.shipped.models",
    "check_algorithm": "sb3_trpo.self_test",
    "check_task": "sb3_trpo.self_test",
    "diagnose": "sb3_trpo.diagnosis.diagnose",
    "make_envpool_vec_env": "sb3_trpo.envpool",
    "register_family": "sb3_trpo.trust_region.families",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
