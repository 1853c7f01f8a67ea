"""
Training on several processes at once, each with environments of its own: exact data-parallel updates.

The processes are called ranks, as ``torch.distributed`` has it, which does the communication. Every mean over samples
goes through ``Ranks.mean``, so that all ranks decide from the same numbers, and take the same step bit for bit.

Each module imports from those after it: ``start`` -> ``joining`` -> ``connected`` -> ``alone``.
"""
