"""Problems of raw data, reported together: what was found, the first examples by name, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DataProblem:
    """One problem of raw data."""

    what: str
    """Sentence that says what was expected and what was found."""
    remedy: str = ""
    """Sentence that says what to do."""
    examples: tuple[str, ...] = ()
    """Names of the affected files; a report shows the first few."""

    def render(self) -> str:
        """Return the problem as one paragraph."""
        text = self.what
        if self.examples:
            more = len(self.examples) - _SHOWN
            text = f"{text.rstrip('.')}: {'; '.join(self.examples[:_SHOWN])}"
            text += f" ... and {more:,} more." if more > 0 else "."
        return f"{text} {self.remedy}".rstrip()

    def record(self) -> dict[str, object]:
        """Return the complete problem in JSON types, for a manifest."""
        return {"what": self.what, "examples": list(self.examples)}


def render_report(name: str, problems: Sequence[DataProblem]) -> str:
    """Return the report of a dataset that cannot be packed as it is."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{name}: {count}, so nothing was published."]
    lines += [f"  {number}. {problem.render()}" for number, problem in enumerate(problems, 1)]
    lines.append(
        "Fix the data and pack again, or pack the valid part with --allow-partial, which the manifest records."
    )
    return "\n".join(lines)
