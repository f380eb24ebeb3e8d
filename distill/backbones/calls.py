"""Calls of a backbone's methods, with checks of the results of user-defined backbones.

An invalid result is refused in one line that names class and method. Exceptions that a backbone's code raises are not
caught: their traceback shows the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import StudentError
from ...extract.intensity import IntensityStatistics
from ...settings import shown
from . import backbone_class
from .backbone import Backbone, BackboneConfig, PackedBatch, PreparedScan, ScanInputs, VoxelPoint


def network_of(config: BackboneConfig, inputs: ScanInputs) -> Backbone:
    """A backbone with initial weights.

    Raises:
        StudentError: an unknown backbone, or a user-defined one that is not a module or has no width.
    """
    kind = backbone_class(config.backbone)
    network = kind.__new__(kind)
    try:
        network.__init__(config, inputs)
    except AttributeError:  # raised by torch if layers are assigned before Module.__init__
        if "_modules" in vars(network):
            raise
    if "_modules" not in vars(network):
        raise StudentError(
            "__init__ of the backbone has not called super().__init__()",
            where=_name_of(network),
            fix="Put the call super().__init__() first.",
        )
    width = network.width
    if not (_is_whole(width) and width >= 1):
        raise _wrong(network, "width", shown(width), "a whole number from 1 on")
    return network


def features_of(network: Backbone, batch: PackedBatch, dtype: torch.dtype) -> torch.Tensor:
    """Features (M, C) of a batch's rows, in the head's dtype; under autocast they may have its dtype instead.

    Raises:
        StudentError: the features are not floating-point numbers, or have another shape.
    """
    features = network(batch)
    if torch.compiler.is_compiling():  # sizes are unknown then
        return features
    shape = (batch.num_points, network.width)
    is_sound = isinstance(features, torch.Tensor) and features.is_floating_point() and features.shape == shape
    if not is_sound:
        wanted = f"floating-point numbers of shape {shape}: rows of its batch, and its width"
        raise _wrong(network, "forward", _described(features), wanted)
    device = features.device.type
    is_half = torch.is_autocast_enabled(device) and features.dtype == torch.get_autocast_dtype(device)
    return features if is_half else features.to(dtype)


def layer_of(network: Backbone, parameter: str) -> int:
    """See `Backbone.layer_of`.

    Raises:
        StudentError: the result is not a layer from 0 to `num_layers` - 1.
    """
    layer = network.layer_of(parameter)
    if not (_is_whole(layer) and 0 <= layer < network.num_layers):
        raise _wrong(network, "layer_of", shown(layer), f"a layer from 0 to below num_layers, {network.num_layers}")
    return layer


def inputs_for(inputs: ScanInputs, dataset: str, *, finetuning: bool = False) -> ScanInputs:
    """See `ScanInputs.for_dataset`.

    Raises:
        StudentError: the result is not such inputs.
    """
    return _of_same_class(inputs, "for_dataset", inputs.for_dataset(dataset, finetuning=finetuning))


def inputs_for_distillation(inputs: ScanInputs, dataset: str) -> ScanInputs:
    """See `ScanInputs.for_distillation`; raises the same errors as `inputs_for`."""
    return _of_same_class(inputs, "for_distillation", inputs.for_distillation(dataset))


def drawn_rows(
    inputs: ScanInputs,
    xyz: np.ndarray,
    seen: np.ndarray | None,
    rng: np.random.Generator,
    voxel_point: VoxelPoint,
) -> np.ndarray:
    """Rows, int64: see `ScanInputs.drawn`.

    Raises:
        StudentError: the result is not rows of the points.
    """
    return _rows(inputs, "drawn", "rows", inputs.drawn(xyz, seen, rng, voxel_point), len(xyz))


def inside_mask(inputs: ScanInputs, xyz: np.ndarray) -> np.ndarray:
    """(N,) bool: see `ScanInputs.inside`.

    Raises:
        StudentError: the result is not (N,) bool.
    """
    mask = inputs.inside(xyz)
    if not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (len(xyz),)):
        raise _wrong(inputs, "inside", _described(mask), f"bool of shape ({len(xyz)},)")
    return mask


def prepared(
    inputs: ScanInputs, points: np.ndarray, intensity: IntensityStatistics, feature_xyz: np.ndarray | None
) -> PreparedScan:
    """See `ScanInputs.prepare`.

    Raises:
        StudentError: not a PreparedScan, or `kept` and `row` are not rows of the points and of each other.
    """
    return _sound(inputs, "prepare", inputs.prepare(points, intensity, feature_xyz), len(points))


def prepared_whole(inputs: ScanInputs, points: np.ndarray, intensity: IntensityStatistics) -> PreparedScan:
    """See `ScanInputs.prepare_whole`; raises the same errors as `prepared`."""
    is_own = type(inputs).prepare_whole is not ScanInputs.prepare_whole
    method = "prepare_whole" if is_own else "prepare"
    return _sound(inputs, method, inputs.prepare_whole(points, intensity), len(points))


def packed(inputs: ScanInputs, scans: Sequence[PreparedScan]) -> PackedBatch:
    """One batch of several scans.

    Raises:
        StudentError: not a PackedBatch, or its rows are not those of the scans.
    """
    batch = inputs.pack([scan.input for scan in scans])
    # Fields of a subclass that is not itself a @dataclass would be lost when the batch is moved to a device.
    if not (isinstance(batch, PackedBatch) and "__dataclass_fields__" in vars(type(batch))):
        raise _wrong(inputs, "pack", _described(batch), "a frozen dataclass derived from PackedBatch")
    offsets, wanted = batch.scan_offsets, np.cumsum([0, *(len(scan.kept) for scan in scans)]).tolist()
    if not (isinstance(offsets, torch.Tensor) and offsets.dtype == torch.int64):
        raise _wrong(inputs, "pack", f"scan_offsets as {_described(offsets)}", "a tensor of int64")
    if offsets.tolist() != wanted:
        found, wanted = shown(offsets.tolist()), f"{shown(wanted)}, the sizes of 'kept' one after the other"
        raise _wrong(inputs, "pack", f"scan_offsets {found}", wanted)
    return batch


def _of_same_class(inputs: ScanInputs, method: str, found: Any) -> ScanInputs:
    if not isinstance(found, type(inputs)):
        raise _wrong(inputs, method, _described(found), f"a {type(inputs).__name__}")
    return found


def _sound(inputs: ScanInputs, method: str, scan: Any, num_points: int) -> PreparedScan:
    """The scan, after a check that each point has a row and each row has a point."""
    if not isinstance(scan, PreparedScan):
        raise _wrong(inputs, method, _described(scan), "a PreparedScan")
    kept = _rows(inputs, method, "'kept'", scan.kept, num_points)
    if len(kept) == 0:
        raise _wrong(inputs, method, "no row in 'kept'", "one at least")
    row = _rows(inputs, method, "'row'", scan.row, len(kept))
    if len(row) != num_points:
        raise _wrong(inputs, method, f"{len(row)} rows in 'row'", f"one for each of {num_points} points")
    return scan._replace(kept=kept, row=row)


def _rows(inputs: ScanInputs, method: str, what: str, rows: Any, end: int) -> np.ndarray:
    """Rows as int64, after a check that they are whole numbers from 0 to `end` - 1."""
    if not (isinstance(rows, np.ndarray) and rows.dtype.kind in "iu" and rows.ndim == 1):
        raise _wrong(inputs, method, f"{what} as {_described(rows)}", "int64 of one axis")
    if len(rows) and (rows.min() < 0 or rows.max() >= end):
        raise _wrong(inputs, method, f"{what} from {rows.min()} to {rows.max()}", f"from 0 to {end - 1}")
    return rows.astype(np.int64, copy=False)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(owner: Any, method: str, found: str, wanted: str) -> StudentError:
    return StudentError(
        f"the method {method} returned {found}, not {wanted}",
        where=_name_of(owner),
        fix="Correct the method; docs/backbones.md says what it returns.",
    )


def _name_of(owner: Any) -> str:
    """The class as recipes name it: package.module:Class."""
    return f"{type(owner).__module__}:{type(owner).__name__}"


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"
