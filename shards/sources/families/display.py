"""Under-display cameras: TOLED and POLED, as MATLAB arrays or as PNG files."""

from __future__ import annotations

from shards.sources.layout import Layout, Matlab, Part, Published


def _display(name: str) -> Published:
    low = name.lower()
    return Published(
        name,
        (
            Part(
                name,
                "test",
                30,
                (
                    *(
                        Matlab(
                            f"MATLAB arrays, {split}",
                            *(f"{low}_{split}_display.mat", f"{split}_display"),
                            *(f"{low}_{split}_gt.mat", f"{split}_gt"),
                        )
                        for split in ("test", "val")
                    ),
                    Layout("PNG files", f"{low}/target/{{key}}.png", f"{low}/input/{{key}}.png"),
                    Layout("PNG files", "target/{key}.png", "input/{key}.png"),
                ),
                low,
                size=(1024, 2048),
            ),
        ),
        where="UDC challenge of ECCV 2020 (under-display cameras)",
    )


TOLED = _display("TOLED")
POLED = _display("POLED")
