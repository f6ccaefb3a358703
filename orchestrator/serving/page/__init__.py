"""The page at `/`: one HTML file, and sample photographs."""

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
    """Return the page. Its policy allows its inline style and script by their hashes, and no other host."""
    html = (FOLDER / "index.html").read_text("utf-8").replace("[/*samples*/]", json.dumps(samples()))
    allowed = {
        kind: " ".join(_hash(text) for text in re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL))
        for kind in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; "
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
    """Return file, title, description and source of each sample photograph."""
    listed: list[dict[str, str]] = json.loads((SAMPLES / "samples.json").read_text("utf-8"))
    return listed


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
