"""
What one update does: the policy step, the critic's fit, and how they are undone.
"""
