"""
The hyperparameters that ship, by entry or by rule, and models made with them.
"""
