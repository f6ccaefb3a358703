"""`mirage report`: the paper's tables with what was measured here, printed and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import EvaluationError
from orchestrator.evaluation import paper_tables
from orchestrator.evaluation.summary import EvaluationSummary, read_summary
from orchestrator.paper.tables import NAMES, source
from orchestrator.paths import home


def report(
    names: Sequence[str], results: Sequence[Path], out: Path | None, against: str | None
) -> Iterator[str]:
    """Yield each table as text, then where they were written. Raises EvaluationError.

    names: tables as the paper numbers them; none for all, and for benchmarks that the paper has not. results: folders
    of evaluations; none for all in this project's home folder. `out` gets tables.md, tables.csv and tables.json.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise EvaluationError(f"--table {', '.join(unknown)}: one of {', '.join(NAMES)}.")
    summaries = _summaries(results)
    made = [table for name in names or NAMES for table in paper_tables.make_tables(name, summaries, against)]
    if not names:
        made += paper_tables.own_tables(summaries)
    for table in made:
        yield paper_tables.text(table) + "\n"
    folder = out or home() / "report"
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# The paper's tables, and what was measured here\n\nPublished rows: {source()}\n\n"
    (folder / "tables.md").write_text(head + "\n".join(map(paper_tables.markdown, made)))
    (folder / "tables.csv").write_text(_one_header([paper_tables.as_csv(table) for table in made]))
    content = {"source": source(), "tables": [asdict(table) for table in made]}
    (folder / "tables.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    yield f"published rows: {source()}"
    yield f"written: {folder / 'tables.md'}, tables.csv, tables.json"


def _summaries(results: Sequence[Path]) -> list[EvaluationSummary]:
    folders = list(results) or sorted(path.parent for path in (home() / "evaluations").glob("*/summary.json"))
    found = [read_summary(folder) for folder in folders]
    if len({summary.evaluation for summary in found}) < len(found):
        raise EvaluationError("--results names one evaluation twice.")
    return found


def _one_header(parts: Sequence[str]) -> str:
    first, *rest = parts
    return first + "".join(part.partition("\n")[2] for part in rest)
