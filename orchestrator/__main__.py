"""`python -m orchestrator` is the `mirage` command: the shebang of every job file uses it."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
