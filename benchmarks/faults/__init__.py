"""
Runs that are made to fail, each beside one that is as it should be.
"""
