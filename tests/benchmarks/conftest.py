import importlib.util
import sys
from pathlib import Path

# The benchmarks are scripts, not part of the installed package; their modules are found beside them.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

# Without the extra `zoo` there is nothing to test here.
collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("rl_zoo3") is None else []
