import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "contrib_suite.py"


@pytest.mark.slow
def test_sb3_contribs_own_tests_pass():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "with TRPO, MaskableTRPO, RecurrentTRPO" in result.stdout
    assert f"sb3_contrib-{version('sb3-contrib')}" in result.stdout
    (n_passed,) = re.findall(r"(\d+) passed", result.stdout)
    assert int(n_passed) >= 60
    assert "skipped" not in result.stdout
