"""Find the scenes of a split: a named split, several names separated by commas, or a fraction of the labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ...errors import DatasetError, did_you_mean

EVERY_NTH = {"1": 100, "5": 20, "10": 10, "25": 4, "50": 2}  # percent of the labels -> keep every n-th


def several(text: str) -> list[str]:
    """Split `train,val` into its names.

    Raises:
        DatasetError: a name that is empty, or given twice.
    """
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise DatasetError(
            f"'{text}' holds an empty name", where="--split", fix="Name splits, separated by single commas."
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise DatasetError(f"'{twice[0]}' is named twice in '{text}'", where="--split", fix="Name each split once.")
    return names


def refuse_share(name: str) -> None:
    """Refuse a fraction of the labels such as `train-1%`, for datasets without such subsets.

    Raises:
        DatasetError: the name has a fraction.
    """
    base, every_nth = Split.parse(name)
    if every_nth > 1:
        raise DatasetError(
            f"'{name}' is unknown: this dataset has no published subsets of the labels",
            where="--split",
            fix=f"Use all labels (--labels 100% or --split {base}), or name scenes.",
        )


class Split(NamedTuple):
    """A requested split: `train`, `train-10%`, or scenes by name, `0061,0103`."""

    base: str
    every_nth: int = 1

    @classmethod
    def parse(cls, text: str) -> Split:
        """Separate the fraction of labels from the split's name.

        Raises:
            DatasetError: a fraction other than those of EVERY_NTH.
        """
        match = re.fullmatch(r"(.+)-([\d.]+)%", text)
        if not match:
            return cls(text)
        base, percent = match.groups()
        if percent not in EVERY_NTH:
            raise DatasetError(
                f"'{text}' is unknown: there is no label subset of {percent} %",
                where="--split",
                fix=f"Use one of: {', '.join(f'{base}-{each}%' for each in EVERY_NTH)}.",
            )
        return cls(base, EVERY_NTH[percent])


def chosen_scenes(
    base: str, named: Mapping[str, Collection[str]], available: Sequence[str], every_nth: int = 1
) -> list[str]:
    """Return the scenes of a split, in the order of `available`.

    Args:
        base: keys of `named` and names of scenes, separated by commas.
        named: the scenes of each named split.
        available: scenes in the dataset's folder.
        every_nth: the requested fraction of the labels: every n-th is kept.

    Raises:
        DatasetError: neither a split nor existing scenes, or a fraction of several splits.
    """
    names = several(base)
    if len(names) > 1 and any(Split.parse(name).every_nth > 1 or (every_nth > 1 and name in named) for name in names):
        raise DatasetError(
            f"'{base}' has several splits with a fraction of the labels, which is ambiguous",
            where="--split",
            fix="Name one split alone with its fraction, or scenes, as in scene-0001,scene-0002-10%.",
        )
    missing = [name for name in names if name not in named and name not in available]
    if missing:
        refuse_share(missing[0])
        hint = did_you_mean(missing[0], [*named, *available])
        raise DatasetError(
            f"no split and no scene '{missing[0]}'{hint}",
            where="--split",
            fix=f"Use one of: {', '.join(named)}; or scenes by name, such as {','.join(available[:2]) or 'a,b'}.",
        )
    wanted = {scene for name in names for scene in named.get(name, (name,))}
    return [scene for scene in available if scene in wanted]
