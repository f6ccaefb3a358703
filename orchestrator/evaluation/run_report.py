"""The table at the end of a run, for somebody who has never seen one."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator import tables
from orchestrator.evaluation.scores import DegradationScore

_HEAD = ("degradation", "n", "degraded", "best gain+offset", "restored", "gain over degraded", "")


def score_table(rows: Sequence[DegradationScore]) -> str:
    """Return the evaluation as aligned text: PSNR [dB] and SSIM before and after, the gain with its interval."""
    *degradations, average = map(_cells, rows)
    return "\n".join(tables.aligned(_HEAD, [*degradations, (), average], "<>>>>><"))


def legend(protocol: str, recipe: str, weights: str, n: int) -> str:
    """Return the lines that say how the table's numbers were made."""
    return (
        f"PSNR [dB] / SSIM of whole held-out photographs ({n} per degradation), protocol {protocol}, recipe {recipe}, "
        f"{weights} weights.\n"
        "gain: PSNR over the degraded input's, with its 95 % bootstrap interval over photographs.\n"
        "best gain+offset: the best brightness-and-contrast correction per degradation, fitted on these very "
        "photographs;\nthe model must beat it on average."
    )


def conclusion(rows: Sequence[DegradationScore]) -> str:
    """Return one sentence on the average, and one on what became worse."""
    average = rows[-1]
    beats = "beats" if average.psnr > average.baseline_psnr else "DOES NOT BEAT"
    worse = [row.degradation for row in rows[:-1] if row.gain < 0]
    text = (
        f"On average the model gains {average.gain:+.2f} dB over the degraded input and {beats} the best "
        f"gain+offset ({average.psnr:.2f} against {average.baseline_psnr:.2f} dB)."
    )
    return f"{text} Worse than the input: {', '.join(worse)}." if worse else text


def markdown_report(rows: Sequence[DegradationScore], title: str, how: str) -> str:
    """Return the same table as Markdown."""
    body = tables.markdown((*_HEAD[:-1], "note"), map(_cells, rows))
    return "\n".join([f"# {title}", "", *body, "", how, "", conclusion(rows), ""])


def _cells(row: DegradationScore) -> tuple[str, ...]:
    note = "worse than the input" if row.gain < 0 else ""
    return (
        row.degradation,
        str(row.n),
        f"{row.input_psnr:.2f} / {row.input_ssim:.3f}",
        f"{row.baseline_psnr:.2f}",
        f"{row.psnr:.2f} / {row.ssim:.3f}",
        f"{row.gain:+.2f} [{row.gain_low:+.2f}, {row.gain_high:+.2f}]",
        note,
    )
