"""Read a text file with one file name per line, as any system and editor writes it."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from shards.errors import PackError
from shards.filesystem import read_regular


def read_list(path: Path, what: str) -> tuple[bytes, list[str]]:
    """Return the bytes of a list and its names. Raises PackError, which begins with `what`.

    Text is UTF-8, or UTF-16 with its mark at the beginning, which Windows calls Unicode.
    """
    try:
        data = read_regular(path)
        is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_wide else "utf-8-sig")
    except OSError as error:
        raise PackError(f"{what}: the list cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise PackError(f"{what}: the list is not UTF-8 text. Save it as UTF-8.") from error
    if "\0" in text:  # UTF-16 without its mark is valid UTF-8
        raise PackError(f"{what}: the list is not UTF-8 text. Save it as UTF-8.")
    names = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not names:
        raise PackError(f"{what}: the list is empty. It must hold one file name in each line.")
    return data, names
