"""The settings of an extraction: the options of `scalr extract`, checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..errors import ScalrError
from ..settings import Count, Settings, Workers, at_least, up_to
from .encoding import Encoding, Layout, StoredDtype
from .plan import Part
from .preparation import Occlusion, OnError, Points, Selection
from .teachers.choices import PosEmbed, Precision, choose_weights
from .teachers.registry import keeps_only_segments

Pixels = Annotated[int, at_least(1), up_to(65536)]


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Settings):
    """One extraction; the fields are the options of `scalr extract`."""

    root: Path
    out: Path = Path("store.zarr")
    teachers: Annotated[tuple[str, ...], at_least(1)]
    dataset: str = "nuscenes"
    split: str = "train"
    image_size: tuple[Pixels, Pixels] | None = None  # None: 224x448, or the nearest size that the patch size divides
    encoding: Layout | None = None  # None: see `kept_as`
    dtype: StoredDtype = "int8"
    points: Points = "all"
    occlusion: Occlusion = "keep"
    superpixels: Literal["slic"] | Path | None = None  # a path is the folder of maps
    on_error: OnError = "stop"
    weights: tuple[str, ...] = ("hub",)  # for all teachers, or TEACHER=FILE
    feature: str | None = None  # None: the teacher's default
    pos_embed: PosEmbed | None = None
    precision: Precision = "float32"
    device: str = "auto"
    batch_size: Count | None = None  # None: measured by the first job
    frames_per_block: Count | None = None  # None: the store's, else the encoding's default
    part: Part = field(default_factory=Part)
    workers: Workers = 0  # processes; 0 runs everything in this process
    scheduler: str | None = None  # address of a dask cluster

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers and self.scheduler:
            raise ScalrError(
                "--workers and --scheduler are given, and a dask cluster has its own workers",
                where="--workers",
                fix="Pass one of the two options.",
            )
        if twice := [name for name in set(self.teachers) if self.teachers.count(name) > 1]:
            raise ScalrError(f"teacher {twice[0]} is given twice", where="--teacher", fix="Name each teacher once.")
        if self.encoding == "segments" and self.superpixels is None:
            raise ScalrError(
                "segments need superpixels, and no superpixels are given",
                where="--encoding segments",
                fix="Pass --superpixels slic, or --superpixels with a folder of maps.",
            )
        choose_weights(self.teachers, self.weights)

    @property
    def selection(self) -> Selection:
        """Which points and pairs of a scan are kept; superpixels are opened together with the dataset."""
        return Selection(self.points, self.occlusion)

    @property
    def kept_as(self) -> Encoding:
        """How targets are stored: `patch` by default, or `segments` if all teachers are stored as segments only.

        Vectors of segments are float16, whatever `dtype` says.
        """
        only_segments = self.superpixels is not None and all(map(keeps_only_segments, self.teachers))
        layout = self.encoding or ("segments" if only_segments else "patch")
        return Encoding(layout, "float16" if layout == "segments" else self.dtype)
