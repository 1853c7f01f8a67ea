"""
What the user gave may be: arguments, policies, spaces, installed packages.
"""
