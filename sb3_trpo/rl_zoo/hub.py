"""
``sb3-trpo push-to-hub``: RL Zoo's ``push_to_hub``, which uploads a trained policy, with a function that it lacks.

RL Zoo 2.9.2 imports ``generate_metadata`` from ``huggingface_sb3``. The package huggingface-sb3 has this function, up
to its last version, 3.0. But RL Zoo requires sb3-team-hf-integration 3.2, where it is called ``_generate_metadata`` and
returns an object in the place of a dictionary.
"""

import importlib
import runpy
from typing import Any


def complete_hub_integration() -> None:
    """Give ``huggingface_sb3`` the function that RL Zoo imports from it, unless it has it."""
    # ``import`` would find the package's function of the same name.
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if hasattr(hub, "generate_metadata"):
        return

    def generate_metadata(*args: Any, **kwargs: Any) -> dict[str, Any]:
        metadata: dict[str, Any] = hub._generate_metadata(*args, **kwargs).to_dict()
        return metadata

    hub.generate_metadata = generate_metadata


def push_to_hub() -> None:
    """Run RL Zoo's script with the arguments in ``sys.argv``."""
    complete_hub_integration()
    runpy.run_module("rl_zoo3.push_to_hub", run_name="__main__", alter_sys=True)
