"""The table of scores at the end of a training job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator import tables
from orchestrator.evaluation.scores import DegradationScore

HEAD = ("degradation", "n", "degraded", "best linear fit", "restored", "improvement [dB]", "")
"""Columns of the table; the last one holds notes."""
ALIGN = "<>>>>><"


def score_table(rows: Sequence[DegradationScore]) -> str:
    """Return the scores as aligned text: PSNR [dB] and SSIM before and after, the improvement with its interval."""
    *degradations, average = map(cells, rows)
    return "\n".join(tables.aligned(HEAD, [*degradations, (), average], ALIGN))


def legend(
    protocol: str, recipe: str, weights: str, n: int, pipelines: Mapping[str, str] | None = None
) -> str:
    """Return how the table's numbers were computed. `pipelines`: degradation -> digest of what made it."""
    made = ", ".join(f"{name} {digest[:12]}" for name, digest in (pipelines or {}).items())
    return (
        f"PSNR [dB] / SSIM of whole held-out photographs ({n} per degradation), protocol {protocol}, recipe {recipe}, "
        f"{weights} weights.\n"
        "improvement: PSNR minus the degraded input's, with its 95 % bootstrap interval over photographs.\n"
        "best linear fit: PSNR of the best brightness and contrast correction per degradation, fitted to these "
        "photographs;\nthe model must exceed it on average."
        f"{f'{chr(10)}Degraded by pipelines (digest of pipeline and seed): {made}.' if made else ''}"
    )


def conclusion(rows: Sequence[DegradationScore]) -> str:
    """Return one sentence on the average, and one on degradations that became worse."""
    average = rows[-1]
    beats = "beats" if average.psnr > average.baseline_psnr else "DOES NOT BEAT"
    worse = [row.degradation for row in rows[:-1] if not row.gain >= 0]
    text = (
        f"On average the model improves the degraded input by {average.gain:+.2f} dB and {beats} the best linear "
        f"brightness-and-contrast fit ({average.psnr:.2f} against {average.baseline_psnr:.2f} dB)."
    )
    return f"{text} Worse than the input: {', '.join(worse)}." if worse else text


def markdown_report(rows: Sequence[DegradationScore], title: str, how: str) -> str:
    """Return the table, its legend and the conclusion as Markdown."""
    body = tables.markdown((*HEAD[:-1], "note"), map(cells, rows))
    return "\n".join([f"# {title}", "", *body, "", how, "", conclusion(rows), ""])


def cells(row: DegradationScore) -> tuple[str, ...]:
    """Return a row of the table below `HEAD`."""
    return (
        row.degradation,
        str(row.n),
        f"{row.input_psnr:.2f} / {row.input_ssim:.3f}",
        f"{row.baseline_psnr:.2f}",
        f"{row.psnr:.2f} / {row.ssim:.3f}",
        f"{row.gain:+.2f} [{row.gain_low:+.2f}, {row.gain_high:+.2f}]",
        "" if row.gain >= 0 else "worse than the input",
    )
