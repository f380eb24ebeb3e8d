"""Pictures of one scan with its predicted classes, or with the principal components of its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..distill.backbones.backbone import ScanInputs
from ..distill.backbones.calls import packed
from ..distill.student import Student
from .cloud_page import cloud_page
from .pictures import as_png, class_colours, coloured_top_view
from .raw_scans import RawScan
from .scan_features import ScanFeatures
from .similarity import chosen_query, cloud_of, pca_colours

ClassNames = tuple[str, ...] | None  # None: a student without classes


@dataclass(frozen=True)
class Picture:
    """A way to draw a scan."""

    ending: str
    of: Callable[[ScanFeatures, ClassNames, str], bytes]

    def draw(self, student: Student, inputs: ScanInputs, scan: RawScan, names: ClassNames, title: str) -> bytes:
        """The file's content."""
        with torch.inference_mode():
            tokens = student.tokens(packed(inputs, [scan.prepared]).to(student.device)).float()
            rows = None if names is None else student.project(tokens).argmax(dim=1).to(torch.uint8).cpu().numpy()
        labels = None if rows is None else rows[scan.prepared.row]
        features = ScanFeatures(scan.points, labels, tokens, scan.prepared.kept, scan.prepared.row)
        return self.of(features, names, title)


def _png(scan: ScanFeatures, names: ClassNames, title: str) -> bytes:
    if names is None:
        return as_png(coloured_top_view(scan.points, pca_colours(scan.units)[scan.nearest], {}, title))
    colours, found = class_colours(len(names)), np.unique(scan.labels)
    legend = {names[index]: tuple(colours[index]) for index in found}
    return as_png(coloured_top_view(scan.points, colours[scan.labels], legend, title))


def _page(scan: ScanFeatures, names: ClassNames, title: str) -> bytes:
    query, vector = chosen_query(scan, names or (), None, None)
    size = f"{len(scan.points):,} points, {len(scan.units):,} voxels"
    cloud = cloud_of(
        *(scan, query, vector),
        title=title,
        summary=f"{size}, predicted classes" if names else size,
        centre=True,
        class_names=names or (),
        colour_by="class" if names else "pca",
    )
    return cloud_page(cloud)[0].encode()


PICTURES = {"png": Picture(".png", _png), "page": Picture(".html", _page)}
