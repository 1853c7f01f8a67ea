"""
From environments to the rollout buffer.

Read ``collect`` first: it chooses between the fast path (``fast_rollout``, with ``samplers`` and ``advantages``) and
SB3's own loop. Either steps the environments through ``guard``, which checks what they give (``checks``), names the one
that fails (``failures``), and steps SB3's own classes without copies that nobody reads (``steps``).
"""
