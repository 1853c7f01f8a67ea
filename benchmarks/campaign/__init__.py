"""
The machinery behind the learning benchmarks: what a run is, how it is trained and evaluated, where its result lies, and
how many runs are worked off side by side. The scripts one folder up say which runs a question needs.

    plan            tasks and seeds of the campaigns
    specification   one run, by all that decides its outcome
    algorithms      what can be run, and where its hyperparameters come from
    overrides       `--set key=value`
    experiment      RL Zoo's environments and model for a specification
    evaluation      returns of a policy on environments of its own
    learning_run, improvement_run   the two kinds of run
    results         result files: written whole or not at all, checked when read
    scheduler       works off what is missing
    command_line    the options that all scripts share
    variants        algorithms that exist for comparison only
    records         a folder of results, grouped for the report
    statistics      what the tables say of a sample
"""
