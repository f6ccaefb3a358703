"""`mirage report`: the paper's tables with the scores measured here, printed and written to files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import EvaluationError
from orchestrator.evaluation import paper_tables
from orchestrator.evaluation.summary import SUMMARY, EvaluationSummary, read_summary
from orchestrator.outputs import write_output
from orchestrator.paper.tables import NAMES, source
from orchestrator.paths import home


def report(
    names: Sequence[str], results: Sequence[Path], out: Path | None, compare_with: str | None
) -> Iterator[str]:
    """Yield each table as text, then the names of the files. Raises EvaluationError.

    names: tables as the paper numbers them; none: all, and those of benchmarks that are not in the paper.
    results: folders of evaluations; none: all in this project's home folder.
    out: folder for tables.md, tables.csv and tables.json.
    compare_with: published row to compare with; None: the one that fits the model.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise EvaluationError(f"--table {', '.join(unknown)}: one of {', '.join(NAMES)}.")
    summaries = _summaries(results)
    made = [
        table for name in names or NAMES for table in paper_tables.make_tables(name, summaries, compare_with)
    ]
    if not names:
        made += paper_tables.own_tables(summaries)
    for table in made:
        yield paper_tables.text(table) + "\n"
    folder = out or home() / "report"
    head = f"# The paper's tables with measured scores\n\nPublished rows: {source()}\n\n"
    write_output(folder / "tables.md", head + "\n".join(map(paper_tables.markdown, made)))
    write_output(folder / "tables.csv", paper_tables.as_csv(made))
    content = {"source": source(), "tables": [asdict(table) for table in made]}
    write_output(folder / "tables.json", json.dumps(content, indent=1, ensure_ascii=False))
    yield f"published rows: {source()}"
    yield f"written: {folder / 'tables.md'}, tables.csv, tables.json"


def _summaries(results: Sequence[Path]) -> list[EvaluationSummary]:
    folders = list(results) or sorted(path.parent for path in (home() / "evaluations").glob(f"*/{SUMMARY}"))
    found = [read_summary(folder) for folder in folders]
    if len({summary.evaluation for summary in found}) < len(found):
        raise EvaluationError("--results names one evaluation twice.")
    return found
