"""What is wrong with raw data, as one report: what was found, the first misses by name, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DataProblem:
    """One thing that is wrong."""

    what: str
    """A sentence: what was expected, what is there."""
    remedy: str = ""
    examples: tuple[str, ...] = ()
    """The misses by name, as many as are known; the report shows the first few."""

    def render(self) -> str:
        """The problem in one paragraph."""
        text = self.what
        if self.examples:
            more = len(self.examples) - _SHOWN
            text = f"{text.rstrip('.')}: {'; '.join(self.examples[:_SHOWN])}"
            text += f" ... and {more:,} more." if more > 0 else "."
        return f"{text} {self.remedy}".rstrip()

    def record(self) -> dict[str, object]:
        """The problem in JSON types, complete, for a manifest."""
        return {"what": self.what, "examples": list(self.examples)}


def render_report(name: str, problems: Sequence[DataProblem]) -> str:
    """The report of a dataset that cannot be packed as it is."""
    lines = [f"{name}: {_problems(len(problems))}, so nothing was published."]
    lines += [f"  {number}. {problem.render()}" for number, problem in enumerate(problems, 1)]
    lines.append("Mend the data and pack again, or pack what is there with --allow-partial: it is recorded.")
    return "\n".join(lines)


def _problems(count: int) -> str:
    return "1 problem" if count == 1 else f"{count} problems"
