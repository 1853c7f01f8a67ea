"""
The mathematics of a trust-region step, on flat vectors.
"""
