"""Under-display cameras: TOLED and POLED, as MATLAB arrays or as PNG files."""

from __future__ import annotations

from shards.sources.layout import DatasetPart, FileLayout, MatlabLayout, PublishedDataset


def _display(name: str) -> PublishedDataset:
    low = name.lower()
    return PublishedDataset(
        name,
        (
            DatasetPart(
                name,
                "test",
                30,
                (
                    *(
                        MatlabLayout(
                            f"MATLAB arrays, {split}",
                            *(f"{low}_{split}_display.mat", f"{split}_display"),
                            *(f"{low}_{split}_gt.mat", f"{split}_gt"),
                        )
                        for split in ("test", "val")
                    ),
                    FileLayout("PNG files", f"{low}/target/{{key}}.png", f"{low}/input/{{key}}.png"),
                    FileLayout("PNG files", "target/{key}.png", "input/{key}.png"),
                ),
                low,
                size=(1024, 2048),
            ),
        ),
        where="UDC challenge of ECCV 2020 (under-display cameras)",
    )


TOLED = _display("TOLED")
POLED = _display("POLED")
