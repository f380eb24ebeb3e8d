"""What a lidar backbone is to the rest of scalr: a network, its settings, and how scans become its input.

A backbone is a class derived from `Backbone`, with two classes of settings. `Config` says what the network is, `Inputs`
how a raw scan becomes its input: the sections `student` and `inputs` of a recipe. All else (heads, files, training,
evaluation) is the same for every backbone. docs/backbones.md writes one in 60 lines.

Letters in shapes: N given points of a scan, M rows that the network has features of (of one scan, or of a whole batch),
C channels of a feature, B scans.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from ...errors import StudentError
from ...extract.intensity import IntensityStatistics
from ...settings import Settings, at_least, up_to
from ..heads import CLASS_HEADS, Head

VoxelPoint = Literal["random", "first"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Settings, section="student"):
    """What a network is, and the head on it: the section `student` of a recipe.

    Raises:
        StudentError: a value that cannot be used.
    """

    backbone: str  # a name, or package.module:Class; a backbone's own Config has its own as the default
    head: Head = "linear"
    out_channels: Annotated[int, at_least(1), up_to(65536)] = 1024

    @property
    def tells_classes(self) -> bool:
        """Whether the head is for classes, and not for features."""
        return self.head in CLASS_HEADS

    @property
    def title(self) -> str:
        """What a student of it is called, for people: WI-48-256."""
        return self.backbone.rpartition(":")[2]

    @property
    def description(self) -> str:
        """The title, and what else tells it from others, in a few words."""
        return self.title

    def with_own(self, **values: float | None) -> Self:
        """The same network with other values of settings, as far as it has such; None leaves one as it is.

        Trainings on labels set `stochastic_depth` and `bn_momentum`.
        """
        own = {field.name for field in fields(self)}
        return replace(self, **{name: value for name, value in values.items() if name in own and value is not None})


class PreparedScan(NamedTuple):
    """A scan as a backbone reads it, and which of its rows speak for which point."""

    input: Any  # what `ScanInputs.pack` takes: of NumPy arrays, for it travels between processes
    kept: np.ndarray  # (M,) int64 rows of the given points that the network has features of
    row: np.ndarray  # (N,) int64 for each given point the row among the M that stands for it


@dataclass(frozen=True)
class ScanInputs(Settings, ABC, section="inputs"):
    """How scans become a backbone's input: the section `inputs` of a recipe. Used in worker processes.

    Raises:
        StudentError: a value that cannot be used.
    """

    def for_dataset(self, dataset: str, *, finetuning: bool = False) -> Self:
        """The inputs with which a student is probed and scored on a dataset, or finetuned; by default the same."""
        return self

    def for_distillation(self, dataset: str) -> Self:
        """The inputs with which a student learns from a dataset's scans in a store; by default the same for all."""
        return self

    def drawn(
        self, xyz: np.ndarray, seen: np.ndarray | None, rng: np.random.Generator, voxel_point: VoxelPoint = "random"
    ) -> np.ndarray:
        """The points of a raw scan that a training sample is made of, before it is augmented; by default all of `seen`.

        Args:
            xyz: (N, 3) [m].
            seen: (N,) bool, the only points to draw from; None: all.
            rng: of the sample.
            voxel_point: whether a random or the first point of a voxel stands for it, where voxels are drawn from.

        Returns:
            Rows, int64.
        """
        return np.arange(len(xyz)) if seen is None else np.flatnonzero(seen)

    def inside(self, xyz: np.ndarray) -> np.ndarray:
        """(N,) bool: which points (N, 3) [m] are in the field of view; by default all."""
        return np.ones(len(xyz), dtype=bool)

    @abstractmethod
    def prepare(
        self, points: np.ndarray, intensity: IntensityStatistics, feature_xyz: np.ndarray | None = None
    ) -> PreparedScan:
        """The network's input for points that are drawn, augmented and inside.

        Args:
            points: (N, 4) float32, x y z [m] and raw intensity, one at least.
            intensity: of the dataset.
            feature_xyz: (N, 3) [m], the coordinates among the features, where they were augmented apart from those of
                `points`, which say where a point is; None takes the same for both.
        """

    def prepare_whole(self, points: np.ndarray, intensity: IntensityStatistics) -> PreparedScan:
        """The network's input for a raw scan, as it is evaluated; by default `prepare`.

        Args:
            points: (N, 4) float32, x y z [m] and raw intensity, all finite.
            intensity: of the dataset.

        Raises:
            StudentError: no point that can be used.
        """
        return self.prepare(points, intensity)

    @abstractmethod
    def pack(self, inputs: Sequence[Any]) -> PackedBatch:
        """One batch of the inputs of several scans, the rows of one after those of the other."""


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """The base of a backbone's batches: dataclasses of tensors, also in tuples, lists, dicts and dataclasses.

    Attributes:
        scan_offsets: (B + 1,) int64; scan b is rows scan_offsets[b] to scan_offsets[b + 1].
    """

    scan_offsets: torch.Tensor

    @property
    def num_points(self) -> int:
        """M, rows of all scans."""
        return int(self.scan_offsets[-1])

    @property
    def num_scans(self) -> int:
        return len(self.scan_offsets) - 1

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Called by torch's DataLoader with `pin_memory=True`."""
        return _mapped(self, torch.Tensor.pin_memory)


def _mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with another tensor for each of its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if is_dataclass(value):
        return replace(value, **{each.name: _mapped(getattr(value, each.name), function) for each in fields(value)})
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, function) for item in value))
    return type(value)(_mapped(item, function) for item in value) if isinstance(value, tuple | list) else value


class OfficialFiles(ABC):
    """How a backbone's official code names and shapes the tensors of a model, for `scalr convert`.

    Attributes:
        source: whose code it is, for people: "ScaLR or WaffleIron".
        parts: what the names of a model's tensors begin with, head included.
        inputs_read: settings of the inputs that the official code, too, reads from a file; by default none.
    """

    source: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    inputs_read: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def student_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Official tensors by the names and in the shapes of a student's state dict; others stay as they are."""

    @abstractmethod
    def official_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A student's tensors, backbone and head, by their official names and in their official shapes.

        Tensors that a student does not have, or has in another shape, stay as they are: errors name what is in a file.
        """

    @abstractmethod
    def config(self, tensors: Mapping[str, torch.Tensor], path: Path, activation: str | None) -> BackboneConfig:
        """The network that a student's tensors are of.

        Args:
            tensors: as `student_tensors` gives them.
            path: of the file, for errors.
            activation: what the user says of it, where files do not.

        Raises:
            StudentError: they are of no such network, or of which one is not clear.
        """

    def inputs(self, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The settings of the inputs that a file says, not yet checked; by default none.

        Args:
            tensors: as `student_tensors` gives them, of a network that `config` knows.
            content: of the file, tensors and what stands beside them.
            path: of the file, for errors.

        Raises:
            StudentError: inputs that cannot be made here.
        """
        return {}

    @abstractmethod
    def content(self, tensors: Mapping[str, torch.Tensor], inputs: ScanInputs) -> dict[str, Any]:
        """What the official code loads from a file, with official tensors in it."""

    def refused(self, path: Path, reason: str) -> StudentError:
        """The error of a file that is none of these."""
        return StudentError(
            f"not an official checkpoint of {self.source} ({reason})",
            where=path,
            fix="Pass another file, or --recipe with a recipe of the file's backbone.",
        )


class Exported(NamedTuple):
    """What `torch.export` is given of a student."""

    program: nn.Module  # tensors of one scan -> its features (M, C), and what the head makes of them (M, D)
    example: tuple[torch.Tensor, ...]
    dynamic_shapes: tuple[dict[int, Any], ...]


class Backbone(nn.Module, ABC):
    """A network from packed scans to a feature for each of their rows.

    Called with a `Config` and an `Inputs`.
    """

    Config: ClassVar[type[BackboneConfig]]
    Inputs: ClassVar[type[ScanInputs]]
    official: ClassVar[OfficialFiles | None] = None  # None: there is no official code, or its files are not read

    # While training, a layer's activations are computed again, not kept. None: the backbone cannot do that.
    activation_checkpointing: bool | None = None

    @property
    @abstractmethod
    def width(self) -> int:
        """C, channels of a feature."""

    @abstractmethod
    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """(M, C): a feature of each row of the batch."""

    @property
    def num_layers(self) -> int:
        """Of layer-wise decay of the learning rate."""
        return 1

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter by its name: 0 is the first, `num_layers` - 1 the one before the head."""
        return 0

    def compile_layers(self) -> None:
        """Let torch.compile make the kernels of layers, from their next use on.

        Raises:
            StudentError: the backbone has no such layers.
        """
        raise StudentError(
            f"{type(self).__name__} has no layers for torch.compile",
            where="training.compile",
            fix="Set training.compile to false, or write the method compile_layers.",
        )

    def exported(self, student: nn.Module) -> Exported:
        """What `torch.export` makes a file of, for `student`, whose backbone this is.

        Raises:
            StudentError: the backbone has no such program.
        """
        raise StudentError(
            "the backbone cannot be exported to a program that runs without scalr",
            where=type(self).__name__,
            fix="Use the .safetensors file, or write the method exported.",
        )
