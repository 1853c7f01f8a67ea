"""
From environments to the rollout buffer.
"""
