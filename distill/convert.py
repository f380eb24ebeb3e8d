"""Official checkpoints of ScaLR, ScaLR+ and WaffleIron to students, and students to official checkpoints.

The official files (valeoai/ScaLR, valeoai/WaffleIron) have our names; what differs is their shapes, linear layers being
1x1 convolutions there, the dictionary around them, and what trainings put before each name: "module." where several
processes took part, "_orig_mod." after torch.compile, the model's own name in a larger module. They hold neither
activation nor planes nor field of view: these come from the caller.
"""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch

from ..checkpoint_files import explained, listed, sha256_of_file, written_aside
from ..errors import StudentError
from .checkpoint import load_student, require_finite, save_student
from .export import export_student
from .inputs import POINT_FEATURES, InputConfig
from .waffleiron import Activation, Head, Student, WaffleIronConfig

# Of ScaLR, of its first release, of WaffleIron and finetuned models; of common training loops.
WRAPPERS = ("model_point", "model_points", "net", "state_dict", "model")
PREFIX = re.compile(r"(?:(?:module|_orig_mod|model|student)\.)*")
PARTS = ("embed.", "waffleiron.", "classif.")  # what a student's names begin with
TARGETS = (".safetensors", ".pth", ".pt2")
PLUS = {"activation": "gelu", "stochastic_depth": 0.2}  # of ScaLR+, which is known by its 2-layer head


def convert(source: Path, target: Path, inputs: InputConfig | None, activation: Activation | None = None) -> str:
    """An official `.pth` file to a `.safetensors` student, or that to `.pth` or `.pt2`, by the suffix of `target`.

    Args:
        source, target: files of the two kinds.
        inputs, activation: see `read_official`.

    Returns:
        A sentence that says what was made.

    Raises:
        StudentError: what is wrong with either file.
    """
    if target.exists():
        raise StudentError("a file is there already", where=target, fix="Choose another name.")
    if target.suffix not in TARGETS:
        raise StudentError(
            f"no kind of file has the suffix '{target.suffix}'", where=target, fix=f"Use one of {', '.join(TARGETS)}."
        )
    if (source.suffix == ".safetensors") == (target.suffix == ".safetensors"):
        raise StudentError(
            f"it would be made from '{source.name}', a file of the same kind",
            where=target,
            fix="Name one file .safetensors, the student; the other .pth, the official checkpoint, or .pt2, to export.",
        )
    if target.suffix == ".safetensors":
        prefix, tensors = _read(source)
        student = _student_of(tensors, source, inputs, activation)
        save_student(student, target, {"converted_from": {"file": source.name, "sha256": sha256_of_file(source)}})
    else:
        prefix, student = "", load_student(source)
        write = export_student if target.suffix == ".pt2" else write_official
        write(student, target)
    config = student.config
    return (
        f"{target}: WI-{config.depth}-{config.width}, {config.norm} norm, {config.activation}, "
        f"{config.head} head with {config.out_channels} outputs"
        f"{f'; {prefix!r} was taken off the names of its tensors' if prefix else ''}"
        f"{_meaning_of_outputs(student, target)}"
    )


def read_official(path: Path, inputs: InputConfig | None = None, activation: Activation | None = None) -> Student:
    """A student with the weights of an official `.pth` file, in eval mode on the CPU.

    Args:
        path: of a pretrained, probed, finetuned or supervised model; nothing that it holds is run.
        inputs: voxels, field of view and planes, which the file does not hold; ScaLR's where left out.
        activation: nor this one; where left out, GELU for a 2-layer head, as in ScaLR+, else ReLU. Probed and
            finetuned models with layer norm come from either: there it must be said.

    Raises:
        StudentError: a file that is missing, damaged or of another model, its missing and unexpected keys listed; names
            that begin in several ways; values that are not finite.
    """
    return _student_of(_read(path)[1], path, inputs, activation)


def _student_of(
    tensors: dict[str, torch.Tensor], path: Path, inputs: InputConfig | None, activation: Activation | None
) -> Student:
    config = _config(tensors, path)
    if activation:
        config = replace(config, activation=activation)
    elif (config.head, config.norm) == ("probe", "layer"):
        raise StudentError(
            "relu or gelu? The file does not say, and its head fits both ScaLR and ScaLR+",
            where=path,
            fix="Pass --activation relu for a model of ScaLR, gelu for one of ScaLR+.",
        )
    with torch.random.fork_rng(devices=[]):
        student = Student(config, inputs)
    expected = student.state_dict()
    differences = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
            for name, value in expected.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
        "not floating-point": [
            f"{name} {tensors[name].dtype}"
            for name, value in expected.items()
            if name in tensors and value.is_floating_point() and not tensors[name].is_floating_point()
        ],
    }
    if any(differences.values()):
        raise _not_a_student(path, listed(differences))
    student.load_state_dict(tensors)
    return student.eval()


def _meaning_of_outputs(student: Student, target: Path) -> str:
    """What the head of a student of standardised vectors gives in a file of a kind."""
    if student.standardisation is None:
        return ""
    if target.suffix == ".pt2":
        return "; its outputs are in the teacher's space, mean included"
    return "; its outputs point along the teacher's vectors less their mean, which such a file cannot hold"


def official_tensors(student: Student) -> dict[str, torch.Tensor]:
    """The student's state dict as the official modules have it: linear layers as 1x1 convolutions.

    Of a standardisation, the last layer takes the rotation back; mean and lengths have no place there.
    """
    tensors = {name: value for name, value in student.state_dict().items() if name.startswith(PARTS)}
    if student.standardisation is not None:
        _, last = _head(tensors)
        for name in (last, last.removesuffix("weight") + "bias"):
            tensors[name] = student.standardisation.unrotated(tensors[name].movedim(0, -1)).movedim(-1, 0)
    return {name: _as_convolution(name, value) for name, value in tensors.items()}


def write_official(student: Student, path: Path) -> None:
    """Write a student aside and rename it into place, as both ScaLR's and WaffleIron's scripts load it.

    Raises:
        StudentError: the file cannot be written.
    """
    tensors = {name: value.cpu() for name, value in official_tensors(student).items()}
    content = BytesIO()  # torch's own writer does not say that a disk is full
    # ScaLR reads "model_point", WaffleIron "net"; torch stores tensors that are shared once.
    torch.save({"model_point": tensors, "net": tensors}, content)
    with written_aside(path, StudentError) as temporary:
        temporary.write_bytes(content.getbuffer())


def _read(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """The prefix that is taken off the names, and the tensors as our layers have them."""
    prefix, tensors = _without_prefix(_state_dict(path), path)
    require_finite(tensors, path, "Pass a checkpoint from before the training diverged.")
    return prefix, {name: _as_rows(name, value) for name, value in tensors.items()}


def _without_prefix(tensors: dict[str, torch.Tensor], path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Where all parts of a student have the same prefix, it is taken off; names without it stay as they are."""
    firsts: dict[str, str] = {}
    for name in tensors:
        prefix = PREFIX.match(name)[0]
        if name.removeprefix(prefix).startswith(PARTS):
            firsts.setdefault(prefix, name)
    if len(firsts) > 1:
        raise StudentError(
            f"which one is the student? Names begin in several ways ({', '.join(firsts.values())})",
            where=path,
            fix="Pass a file with the tensors of one model alone.",
        )
    prefix = next(iter(firsts), "")
    return prefix, {name.removeprefix(prefix): value for name, value in tensors.items()}


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    with explained(path, StudentError, missing="Pass an official .pth file or a student.safetensors."):
        values = torch.load(path, map_location="cpu", weights_only=True)
    wrapped = [values[key] for key in WRAPPERS if isinstance(values, dict) and isinstance(values.get(key), dict)]
    values = wrapped[0] if wrapped else values
    named = isinstance(values, dict) and all(isinstance(name, str) for name in values)
    if not named or not all(map(_has_real_numbers, values.values())):
        raise _not_a_student(path, f"no {', '.join(WRAPPERS)} with tensors in it")
    return values


def _has_real_numbers(value: object) -> bool:
    """Whether it is a tensor of which a layer's weights can be made."""
    is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return is_plain and not (value.is_meta or value.is_quantized or value.is_complex())


def _config(tensors: dict[str, torch.Tensor], path: Path) -> WaffleIronConfig:
    layers = {int(found[1]) for name in tensors if (found := re.match(r"waffleiron\.spatial_mix\.(\d+)\.", name))}
    embedding = tensors.get("embed.conv1.weight")
    head = _head(tensors)
    if not layers or embedding is None or embedding.ndim != 2 or head is None:
        raise _not_a_student(path, "no WaffleIron in it" if not layers else "its embedding or head is missing")
    if embedding.shape[1] != POINT_FEATURES:
        raise StudentError(
            f"it reads {embedding.shape[1]} features of a point",
            where=path,
            fix=f"Use a model that reads {POINT_FEATURES}: intensity, x, y, z and radius.",
        )
    kind, last = head
    return WaffleIronConfig(
        width=len(embedding),
        depth=max(layers) + 1,
        norm="batch" if "waffleiron.spatial_mix.0.norm.running_mean" in tensors else "layer",
        head=kind,
        out_channels=len(tensors[last]),
        **(PLUS if kind == "mlp" else {}),
    )


def _head(tensors: dict[str, torch.Tensor]) -> tuple[Head, str] | None:
    """Which head it is, and the name of its last layer's weight."""
    lasts: dict[Head, str] = {"linear": "classif.weight", "probe": "classif.1.weight", "mlp": "classif.2.weight"}
    return next(((kind, last) for kind, last in lasts.items() if last in tensors and tensors[last].ndim == 2), None)


def _as_rows(name: str, value: torch.Tensor) -> torch.Tensor:
    """As our layers have it: (out, in) of a 1x1 convolution, (C,) of the layer scale."""
    if name.endswith(".scale.weight"):
        return value.flatten()
    is_pointwise = value.ndim > 2 and value.shape[2:].numel() == 1
    return value.flatten(1) if is_pointwise else value


def _as_convolution(name: str, value: torch.Tensor) -> torch.Tensor:
    """As the official modules have it: Conv1d layers, and Conv2d ones over points and neighbours."""
    if name.endswith(".scale.weight"):
        return value[:, None, None]
    if value.ndim != 2:
        return value
    return value[:, :, None, None] if name.startswith("embed.conv2.") else value[:, :, None]


def _not_a_student(path: Path, reason: str) -> StudentError:
    return StudentError(
        f"not a WaffleIron of ScaLR ({reason})", where=path, fix="Pass an official checkpoint of ScaLR or WaffleIron."
    )
