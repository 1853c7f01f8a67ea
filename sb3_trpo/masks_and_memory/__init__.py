"""
TRPO with action masks, with memory, and with both.
"""
