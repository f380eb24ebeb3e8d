"""How a simulated dataset is told from a real one: by a file that `scalr synth` writes into its folder."""

from __future__ import annotations

from pathlib import Path

SIMULATED = "simulated by 'scalr synth'"
MARKER = "simulated.txt"


def mark_as_simulated(root: Path) -> None:
    """Write the marker into a dataset's top folder."""
    text = f"Street scenes, {SIMULATED}. Scores on them are not comparable with published results.\n"
    (root / MARKER).write_text(text)


def is_simulated(root: Path) -> bool:
    """Whether a dataset's top folder has the marker."""
    return (root / MARKER).is_file()
