"""All published results that runs are compared with.

Sources: the tables of ScaLR (Puy et al., CVPR 2024), the READMEs of valeoai/ScaLR's branches main and scalr_plus, the
README of LiMA, and Robo3D's README for WaffleIron without distillation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from .published_minkunet import minkunet_results
from .published_result import Published
from .published_waffleiron import waffleiron_results


def published_for(setting: str | None) -> list[Published]:
    """The rows of a setting, such as "probe nuscenes"."""
    return [row for row in PUBLISHED if row.setting == setting]


def _each_once(rows: Iterable[Published]) -> tuple[Published, ...]:
    """One row, with all its sources, for a result that several tables repeat."""
    merged: dict[str, Published] = {}
    for row in rows:
        same = [row.who, row.setting, dict(row.model), dict(row.protocol), dict(row.figures)]
        key = json.dumps(same, sort_keys=True)
        before = merged.get(key)
        merged[key] = row if before is None else replace(before, sources=(*before.sources, *row.sources))
    return tuple(merged.values())


PUBLISHED = _each_once([*waffleiron_results(), *minkunet_results()])
