"""Which scenes a split has: names as data, a list of scenes, or a share of the labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ...errors import DatasetError, did_you_mean

EVERY_NTH = {"1": 100, "5": 20, "10": 10, "25": 4, "50": 2}  # percent of the labels -> keep every n-th


class Split(NamedTuple):
    """A split as it was asked for: `train`, `train-10%`, or scenes by name, `0061,0103`."""

    base: str
    every_nth: int = 1

    @classmethod
    def parse(cls, text: str) -> Split:
        """Take the share of labels off the split's name.

        Raises:
            DatasetError: a share for which there is no rule.
        """
        match = re.fullmatch(r"(.+)-([\d.]+)%", text)
        if not match:
            return cls(text)
        base, percent = match.groups()
        if percent not in EVERY_NTH:
            raise DatasetError(
                f"no label subset of {percent} % in '{text}'",
                where="--split",
                fix=f"Use one of: {', '.join(f'{base}-{each}%' for each in EVERY_NTH)}.",
            )
        return cls(base, EVERY_NTH[percent])


def chosen_scenes(base: str, named: Mapping[str, Collection[str]], available: Sequence[str]) -> list[str]:
    """The scenes of a split, in the order of `available`.

    Args:
        base: a key of `named`, or names of scenes with commas between.
        named: scenes of each split that has a name.
        available: what the dataset's folder holds.

    Raises:
        DatasetError: neither a split nor scenes that are there.
    """
    if base in named:
        return [scene for scene in available if scene in named[base]]
    wanted = [name.strip() for name in base.split(",")]
    missing = [name for name in wanted if name not in available]
    if missing:
        hint = did_you_mean(missing[0], [*named, *available])
        raise DatasetError(
            f"no split and no scene '{missing[0]}'{hint}",
            where="--split",
            fix=f"Use one of: {', '.join(named)}; or scenes by name, such as {','.join(available[:2]) or 'a,b'}.",
        )
    return [scene for scene in available if scene in wanted]
