"""
``sb3-trpo push-to-hub``: RL Zoo's ``push_to_hub``, which uploads a trained policy, with a function that it misses.

RL Zoo 2.9.2 imports ``generate_metadata`` from ``huggingface_sb3``. The package huggingface-sb3 has it, up to its last
version, 3.0; sb3-team-hf-integration 3.2, which is what RL Zoo requires, calls it ``_generate_metadata`` and returns an
object in the place of a dictionary.
"""

import importlib
import runpy
from typing import Any


def complete_hub_integration() -> None:
    """Give ``huggingface_sb3`` the function that RL Zoo imports from it, unless it has it."""
    # The package has a function of the same name as this module.
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if hasattr(hub, "generate_metadata"):
        return

    def generate_metadata(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return hub._generate_metadata(*args, **kwargs).to_dict()

    hub.generate_metadata = generate_metadata


def push_to_hub() -> None:
    """Run RL Zoo's script on the arguments of this process."""
    complete_hub_integration()
    runpy.run_module("rl_zoo3.push_to_hub", run_name="__main__", alter_sys=True)
