"""Write the files that a user asked for: whole or not at all, with the mode that the umask gives."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import OutputError
from shards.store.files import write_atomically


def write_output(path: Path, content: bytes | str, *, executable: bool = False) -> Path:
    """Write a file and create its folder; return the path. Raises OutputError and leaves what was there."""
    data = content.encode() if isinstance(content, str) else content
    try:
        target = path.resolve()  # a link stays one
        if target.exists() and not target.is_file():
            raise OutputError(f"{path}: cannot be written, since it is no regular file. Choose another name.")
        write_atomically(target, lambda file: file.write(data))
        if executable:
            mode = target.stat().st_mode
            target.chmod(mode | (mode & 0o444) >> 2)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). Free some space, or choose another place."
        ) from error
    return path
