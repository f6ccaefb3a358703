"""The page at `/`: one HTML response, and sample photographs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
SAMPLES = FOLDER / "samples"


@dataclass(frozen=True)
class Page:
    """The page and its security headers."""

    html: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """Return the page, with its style and scripts inline: its policy allows these by their hashes, and no host."""
    allowed: dict[str, list[str]] = {"style": [], "script": []}

    def inline(found: re.Match[str]) -> str:
        kind = "style" if found["css"] else "script"
        text = (FOLDER / (found["css"] or found["js"])).read_text("utf-8")
        text = text.replace("[/*samples*/]", json.dumps(samples()))
        allowed[kind].append(_hash(text))
        return f"<{kind}>{text}</{kind}>"

    files = r'<link rel="stylesheet" href="(?P<css>\w+\.css)">|<script src="(?P<js>\w+\.js)"></script>'
    html = re.sub(files, inline, (FOLDER / "index.html").read_text("utf-8"))
    policy = (
        f"default-src 'none'; script-src {' '.join(allowed['script'])}; style-src {' '.join(allowed['style'])}; "
        "img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(
        html.encode(),
        {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def samples() -> list[dict[str, str]]:
    """Return file, degradation, title, description and source of each sample photograph."""
    listed: list[dict[str, str]] = json.loads((SAMPLES / "samples.json").read_text("utf-8"))
    return listed


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
