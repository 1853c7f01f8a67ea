"""
Files that hold a model: written so that a crash leaves a whole one, and read without running what they hold.
"""
