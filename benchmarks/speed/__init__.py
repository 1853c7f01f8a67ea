"""
How fast an update and ``learn()`` are, beside their peers in the same run.

``rows`` has one entry for each row of the table. A row is a function of a ``Run`` (threads, quick or not) that returns
what it measured as JSON; ``tables`` turns these files into text and a picture, and measures nothing.
"""
