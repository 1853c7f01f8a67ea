"""
Files that hold a model: written so that a crash leaves a whole file, and read without running what they hold.
"""
