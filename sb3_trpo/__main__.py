"""
``python -m sb3_trpo``, the command ``sb3-trpo`` for launchers that take a module.
"""

from sb3_trpo.cli import main

if __name__ == "__main__":
    main()
