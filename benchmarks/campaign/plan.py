"""
The extent of the campaigns: the tasks and seeds that the scripts run unless told otherwise, and that the tables expect.
"""

MUJOCO_TASKS = ("HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Hopper-v5", "Humanoid-v5", "Swimmer-v5")

# In the learning campaign: ours, whose means are what is to be reached, and all others.
SEEDS_OF_OURS = range(10)
SEEDS_OF_OTHERS = range(5)
# Of the studies beside it, whose variants are many: monotonic improvement, sensitivity, ablations.
SEEDS_OF_STUDIES = range(3)
