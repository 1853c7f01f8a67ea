"""
Why a run does not learn: one set of rules, over what a run leaves or what a training sees.

``rules`` has the rules. ``advice`` warns by them during training, ``run_files`` and ``diagnose`` read a run's folder,
``html`` shows what was found. findings.md, which is installed with the package, has a section for each finding.
"""
