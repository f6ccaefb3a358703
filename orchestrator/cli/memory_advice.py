"""Say what to do when memory runs out: for a job by its kind, for another command by its options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from orchestrator.cli.app import app
from orchestrator.errors import TRAINING_MEMORY_ADVICE, is_out_of_memory

OF_KIND = {
    "train": TRAINING_MEMORY_ADVICE,
    "sweep": "Trials that have ended stay: submit the sweep again to continue, with a smaller sweep.max_concurrent.",
    "evaluate": "Images that are measured stay: submit the job again to continue, with fewer workers on each machine.",
    "restore": "Photographs that are restored stay: submit the job again to continue, with fewer workers on each "
    "machine, restore.batch_size=1 or restore.mode=strips.",
    "pack": "Submit the job again on a machine with more memory.",
}
"""Kind of a job -> advice."""
_OF_OPTION = {
    "--processes": "Use fewer processes: --processes 1.",
    "--tile": "Use --mode strips, or smaller tiles: --tile 256.",
    "--max-batch": "Use smaller limits: --max-batch, --max-megapixels, --max-in-flight.",
    "--crop": "Use a smaller --crop.",
    "--count": "Use a smaller --count.",
}
"""Option -> advice for the commands that have it."""
_OTHERWISE = "Close other programs, or use a machine with more memory."


@contextmanager
def memory_advice(kind: str) -> Iterator[None]:
    """Add the advice for a job of this kind to an error that says that memory is exhausted."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.add_note(OF_KIND[kind])
        raise


def find_advice(error: BaseException, words: Sequence[str]) -> str:
    """Return the advice for the command line `mirage WORDS`, which `error` has ended."""
    notes = getattr(error, "__notes__", [])
    if notes:
        return str(notes[-1])
    command = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    options = {name for parameter in command.params for name in parameter.opts}
    return next((advice for option, advice in _OF_OPTION.items() if option in options), _OTHERWISE)
