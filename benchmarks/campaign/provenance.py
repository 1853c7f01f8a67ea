"""
What a result should say of the software and the machine it was made with.
"""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch as th

from campaign.algorithms import REPOSITORY

PACKAGES = ("stable-baselines3", "sb3-contrib", "rl_zoo3", "torch", "numpy", "gymnasium", "mujoco", "envpool")


def provenance() -> dict[str, Any]:
    """Return versions, machine, and which state of this repository's sources was run."""
    return {"versions": _versions(), "machine": _machine(), "sources": _sources()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> dict[str, Any]:
    machine: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
    }
    if th.cuda.is_available():
        machine["gpus"] = [th.cuda.get_device_name(i) for i in range(th.cuda.device_count())]
    return machine


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _sources() -> dict[str, str]:
    """Return the checked-out commit, and a digest of the package's files as they are, committed or not."""
    digest = hashlib.sha256()
    for file in sorted((REPOSITORY / "sb3_trpo").rglob("*.py")):
        digest.update(file.relative_to(REPOSITORY).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"commit": commit, "sb3_trpo_sha256": digest.hexdigest()[:16]}
