"""
Uploading to the hub, up to where the network begins.
"""

import importlib
import os
import subprocess
import sys

import pytest

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

from huggingface_hub import ModelCard

from sb3_trpo import TRPO
from sb3_trpo.cli import main
from sb3_trpo.rl_zoo.hub import complete_hub_integration


@pytest.mark.slow
def test_trained_policy_is_loaded_and_offered_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--env", "CartPole-v1", "-f", "logs", "--device", "cpu"]
    main(["train", "-n", "1024", "--eval-freq", "-1", "--verbose", "0", *common])
    # The hub's library reads at its import whether it may use the network.
    command = [sys.executable, "-c", "from sb3_trpo.cli import main; main()", "push-to-hub", *common]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    pushed = subprocess.run(
        [*command, "--organization", "nobody", "--no-render"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert "Uploading to nobody/trpo-CartPole-v1" in pushed.stdout
    assert "OfflineModeIsEnabled" in pushed.stderr


def test_model_card_holds_the_result(tmp_path):
    complete_hub_integration()
    rl_zoo_hub = importlib.import_module("rl_zoo3.push_to_hub")
    card, metadata = rl_zoo_hub.generate_model_card("trpo", TRPO.__name__, "nobody", "CartPole-v1", 500.0, 1.5, {}, {})
    rl_zoo_hub.save_model_card(tmp_path, card, metadata)
    (result,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_value) == ("CartPole-v1", "500.00 +/- 1.50")
