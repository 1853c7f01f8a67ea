"""
Policies and action distributions that SB3 lacks, and those it has with their defaults.
"""
