"""
Why a run does not learn: one set of rules, over what a run leaves or what a training sees.

``rules`` has the rules. ``advice`` warns by them during training, ``run_files`` and ``diagnose`` read a run's folder,
``text`` and ``html`` show what was found. docs/my-run-does-not-learn.md has a section for each finding.
"""
