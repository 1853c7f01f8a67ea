"""
Callbacks that users pass to ``learn``.
"""
