"""The corruptions of Robo3D and their folders in its datasets: root/<corruption>/<severity>."""

from __future__ import annotations

from pathlib import Path

from ...errors import DatasetError, did_you_mean

CORRUPTIONS = (
    *("fog", "wet_ground", "snow", "motion_blur"),
    *("beam_missing", "crosstalk", "incomplete_echo", "cross_sensor"),
)
SEVERITIES = ("light", "moderate", "heavy")
MANIFEST = "corruptions.json"  # in folders that 'scalr corrupt' made


def corruption_folder(root: Path, split: str) -> str:
    """Return the folder of a split such as `fog/light`, relative to `root`.

    Raises:
        DatasetError: an unknown corruption or severity, or a missing folder.
    """
    if "," in split:
        raise DatasetError(
            f"several splits are given, '{split}'",
            where="--split",
            fix="Name one corruption and severity, for example fog/light.",
        )
    corruption, _, severity = split.partition("/")
    for name, choices in ((corruption, CORRUPTIONS), (severity, SEVERITIES)):
        if name not in choices:
            raise DatasetError(
                f"no split '{split}': '{name}' is unknown{did_you_mean(name, choices)}",
                where="--split",
                fix=f"Use CORRUPTION/SEVERITY, of {', '.join(CORRUPTIONS)} and {', '.join(SEVERITIES)}.",
            )
    if not (root / corruption / severity).is_dir():
        raise DatasetError(
            "the folder of this corruption is missing",
            where=root / corruption / severity,
            fix="Pass --root with the folder that holds all corruptions, and unpack this corruption there.",
        )
    return f"{corruption}/{severity}"
