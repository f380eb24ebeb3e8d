"""The interface of a lidar backbone: the network, its settings, and how scans become its input.

A backbone is a class derived from `Backbone`, with two classes of settings: `Config` defines the network, `Inputs`
defines how a raw scan becomes its input. They are the sections `student` and `inputs` of a recipe. Heads, files,
training and evaluation are the same for every backbone. docs/backbones.md has an example of 60 lines.

Letters in shapes: N given points of a scan, M rows for which the network has features (of a scan or of a batch),
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
    """The network and the head on it: the section `student` of a recipe.

    Raises:
        StudentError: a value that cannot be used.
    """

    backbone: str  # a name, or package.module:Class; each Config has its own backbone as the default
    head: Head = "linear"
    out_channels: Annotated[int, at_least(1), up_to(65536)] = 1024

    @property
    def tells_classes(self) -> bool:
        """Whether the head is for classes instead of features."""
        return self.head in CLASS_HEADS

    @property
    def title(self) -> str:
        """The name of such students in results and messages, for example WI-48-256."""
        return self.backbone.rpartition(":")[2]

    @property
    def description(self) -> str:
        """The title with the settings that distinguish it from others, in a few words."""
        return self.title

    def with_own(self, **values: float | None) -> Self:
        """A copy with other values for those settings that exist here; None keeps a value.

        Probing and finetuning set `stochastic_depth` and `bn_momentum`.
        """
        own = {field.name for field in fields(self)}
        return replace(self, **{name: value for name, value in values.items() if name in own and value is not None})


class PreparedScan(NamedTuple):
    """A backbone's input for a scan, and the rows that represent its points."""

    input: Any  # for `ScanInputs.pack`; made of NumPy arrays, since it is sent between processes
    kept: np.ndarray  # (M,) int64: the given point of each row of the network
    row: np.ndarray  # (N,) int64: the row, of the M, that represents each given point


@dataclass(frozen=True)
class ScanInputs(Settings, ABC, section="inputs"):
    """How scans become a backbone's input: the section `inputs` of a recipe. Runs in worker processes.

    Raises:
        StudentError: a value that cannot be used.
    """

    def for_dataset(self, dataset: str, *, finetuning: bool = False) -> Self:
        """The inputs for probing, scoring or finetuning a student on a dataset; by default these."""
        return self

    def for_distillation(self, dataset: str) -> Self:
        """The inputs for distillation from a dataset's scans in a store; by default these."""
        return self

    def drawn(
        self, xyz: np.ndarray, seen: np.ndarray | None, rng: np.random.Generator, voxel_point: VoxelPoint = "random"
    ) -> np.ndarray:
        """The points of a raw scan for a training sample, before augmentation; by default all of `seen`.

        Args:
            xyz: (N, 3) [m].
            seen: (N,) bool, the points to draw from; None: all points.
            rng: the sample's generator.
            voxel_point: which point represents a voxel, for backbones that draw one point per voxel.

        Returns:
            Rows of the drawn points, int64.
        """
        return np.arange(len(xyz)) if seen is None else np.flatnonzero(seen)

    def inside(self, xyz: np.ndarray) -> np.ndarray:
        """(N,) bool: whether points (N, 3) [m] are in the field of view; by default all are."""
        return np.ones(len(xyz), dtype=bool)

    @abstractmethod
    def prepare(
        self, points: np.ndarray, intensity: IntensityStatistics, feature_xyz: np.ndarray | None = None
    ) -> PreparedScan:
        """The network's input for points that are drawn, augmented and inside the field of view.

        Args:
            points: (N, 4) float32, x y z [m] and raw intensity, N > 0.
            intensity: statistics of the dataset.
            feature_xyz: (N, 3) [m], the coordinates in the features, if they were augmented separately from those of
                `points`, which give the positions; None uses `points` for both.
        """

    def prepare_whole(self, points: np.ndarray, intensity: IntensityStatistics) -> PreparedScan:
        """The network's input for a raw scan in evaluation; by default `prepare`.

        Args:
            points: (N, 4) float32, x y z [m] and raw intensity, all finite.
            intensity: statistics of the dataset.

        Raises:
            StudentError: no usable point.
        """
        return self.prepare(points, intensity)

    @abstractmethod
    def pack(self, inputs: Sequence[Any]) -> PackedBatch:
        """One batch of the inputs of several scans, whose rows are concatenated."""


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """The base of a backbone's batches: dataclasses of tensors, which may be nested in containers and dataclasses.

    Attributes:
        scan_offsets: (B + 1,) int64; scan b has the rows scan_offsets[b] to scan_offsets[b + 1] - 1.
    """

    scan_offsets: torch.Tensor

    @property
    def num_points(self) -> int:
        """M, the number of rows of all scans."""
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
    """A copy of the value with `function` applied to each tensor in it."""
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
    """Names and shapes of a model's tensors in a backbone's official code, for `scalr convert`.

    Attributes:
        source: name of the official code in messages: "ScaLR or WaffleIron".
        parts: first parts of the names of a model's tensors, including the head.
        inputs_read: input settings that the official code also reads from a file; by default none.
    """

    source: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    inputs_read: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def student_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Official tensors with the names and shapes of a student's state dict; other tensors are not changed."""

    @abstractmethod
    def official_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A student's tensors, backbone and head, with their official names and shapes.

        Tensors that no student has, or that have another shape, are not changed, so that errors name those in the file.
        """

    @abstractmethod
    def config(self, tensors: Mapping[str, torch.Tensor], path: Path, activation: str | None) -> BackboneConfig:
        """The network that a student's tensors belong to.

        Args:
            tensors: result of `student_tensors`.
            path: of the file, for errors.
            activation: given by the user, if files do not hold it.

        Raises:
            StudentError: the tensors belong to no such network, or it is ambiguous to which.
        """

    def inputs(self, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The input settings that a file holds, not yet checked; by default none.

        Args:
            tensors: result of `student_tensors`, for which `config` found a network.
            content: of the file: tensors and other entries.
            path: of the file, for errors.

        Raises:
            StudentError: inputs that scalr does not support.
        """
        return {}

    @abstractmethod
    def content(self, tensors: Mapping[str, torch.Tensor], inputs: ScanInputs) -> dict[str, Any]:
        """The content of a file for the official code, with official tensors."""

    def refused(self, path: Path, reason: str) -> StudentError:
        """The error for a file that is not an official one."""
        return StudentError(
            f"not an official checkpoint of {self.source} ({reason})",
            where=path,
            fix="Pass another file, or --recipe with a recipe of the file's backbone.",
        )


class Exported(NamedTuple):
    """The arguments of `torch.export` for a student."""

    program: nn.Module  # tensors of one scan -> its features (M, C) and their projection (M, D)
    example: tuple[torch.Tensor, ...]
    dynamic_shapes: tuple[dict[int, Any], ...]


class Backbone(nn.Module, ABC):
    """A network that maps packed scans to a feature per row.

    Constructed with a `Config` and an `Inputs`.
    """

    Config: ClassVar[type[BackboneConfig]]
    Inputs: ClassVar[type[ScanInputs]]
    official: ClassVar[OfficialFiles | None] = None  # None: no official files are supported

    # Whether training recomputes a layer's activations in the backward pass. None: not supported.
    activation_checkpointing: bool | None = None

    @property
    @abstractmethod
    def width(self) -> int:
        """C, the number of channels of a feature."""

    @abstractmethod
    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Features (M, C) of the rows of a batch."""

    @property
    def num_layers(self) -> int:
        """The number of layers for the layer-wise decay of the learning rate."""
        return 1

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, by its name: 0 is the first, `num_layers` - 1 the last before the head."""
        return 0

    def compile_layers(self) -> None:
        """Compile layers with torch.compile at their next use.

        Raises:
            StudentError: the backbone has no layers that can be compiled.
        """
        raise StudentError(
            f"{type(self).__name__} has no layers for torch.compile",
            where="training.compile",
            fix="Set training.compile to false, or write the method compile_layers.",
        )

    def exported(self, student: nn.Module) -> Exported:
        """The program of `student`, whose backbone this is, for `torch.export`.

        Raises:
            StudentError: the backbone has no such program.
        """
        raise StudentError(
            "the backbone cannot be exported to a program that runs without scalr",
            where=type(self).__name__,
            fix="Use the .safetensors file, or write the method exported.",
        )
