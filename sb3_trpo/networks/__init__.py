"""
Plain networks, with their derivatives written out.
"""
