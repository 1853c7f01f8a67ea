"""
Commands of ``sb3-trpo`` that RL Zoo does not have.
"""
