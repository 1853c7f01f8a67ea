"""
How to install what is missing, from where this package itself came from.
"""

import importlib.metadata
import json


def how_to_install(extra: str) -> str:
    """
    Tell the command that installs an extra.

    Whatever pip has installed from a folder, a file or a repository has a note of its origin (PEP 610), from which the
    extra can be installed, too.

    :param extra: the extra of this package
    :return: pip's command, between backticks
    """
    try:
        text = importlib.metadata.distribution("sb3-trpo").read_text("direct_url.json")
        origin = json.loads(text or "{}")
        url = origin.get("url", "")
        if url.startswith("file://"):
            return f"`pip install '{url.removeprefix('file://')}[{extra}]'`"
        if "vcs_info" in origin:
            return f"`pip install 'sb3-trpo[{extra}] @ {origin['vcs_info']['vcs']}+{url}'`"
    # Sources that were never installed, or a note that is none.
    except (importlib.metadata.PackageNotFoundError, ValueError, LookupError, AttributeError):
        pass
    return f"`pip install 'sb3-trpo[{extra}]'`"
