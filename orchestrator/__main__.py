"""Run the `mirage` command as `python -m orchestrator`, which the shebang of every job file uses."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
