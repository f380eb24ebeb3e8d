"""Conversion between official checkpoints and students, in both directions.

Each backbone defines names, shapes and wrapping of its files (`backbones.backbone.OfficialFiles`). Prefixes of names
are handled here, because all training code adds them: "module." for several processes, "_orig_mod." after
torch.compile, or the model's own name in a larger module. If a file does not hold the settings of its inputs, the
caller gives them. Errors have the official names and shapes of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from ..checkpoint_files import explained, listed, sha256_of_file, written_aside
from ..errors import StudentError
from ..paths import expanded
from .backbones import BACKBONES, backbone_class
from .backbones.backbone import BackboneConfig, OfficialFiles, ScanInputs
from .checkpoint import load_student, require_finite, save_student
from .export import export_student
from .heads import head_among
from .recipe import Recipe
from .student import Student

# Entries of ScaLR, of its first release and SLidR, of WaffleIron and finetuned models, and of common training loops.
WRAPPERS = ("model_point", "model_points", "net", "state_dict", "model")
PREFIX = re.compile(r"(?:(?:module|_orig_mod|model_points|model|student|encoder)\.)*")
TARGETS = (".safetensors", ".pth", ".pt", ".pt2")


def convert(source: Path, target: Path, recipe: Recipe | None = None, activation: str | None = None) -> str:
    """Convert an official file to a `.safetensors` student, or a student to what the suffix of `target` says.

    Args:
        source: the file to read.
        target: the file to write, which ends in .safetensors, .pth, .pt or .pt2.
        recipe: gives backbone and inputs. Default: the file's backbone, with the inputs that it holds or the defaults.
        activation: see `read_official`.

    Returns:
        A sentence that describes the result.

    Raises:
        StudentError: what is wrong with either file.
    """
    source, target = (expanded(path, StudentError) for path in (source, target))
    if target.exists():
        raise StudentError("the file exists already", where=target, fix="Choose another name for the file.")
    if target.suffix not in TARGETS:
        raise StudentError(
            f"'{target.suffix}' is not the suffix of a format that 'scalr convert' writes",
            where=target,
            fix=f"Use one of {', '.join(TARGETS)}.",
        )
    if (source.suffix == ".safetensors") == (target.suffix == ".safetensors"):
        raise StudentError(
            f"TARGET has the same format as SOURCE, '{source.name}'",
            where=target,
            fix="Name the student .safetensors and the other file .pth or .pt (official checkpoint) or .pt2 (export).",
        )
    if target.suffix != ".safetensors" and (recipe, activation) != (None, None):
        raise StudentError(
            "SOURCE is a student, whose file records backbone, inputs and activation",
            where=source,
            fix="Leave out --recipe, --set and --activation, which are for official files.",
        )
    if target.suffix == ".safetensors":
        named = (None, None) if recipe is None else (recipe.inputs, recipe.student.backbone)
        prefix, student = _read(source, named[0], activation, named[1])
        save_student(student, target, {"converted_from": {"file": source.name, "sha256": sha256_of_file(source)}})
    else:
        prefix, student = "", load_student(source)
        write = export_student if target.suffix == ".pt2" else write_official
        write(student, target)
    config = student.config
    return (
        f"{target}: {config.description}, {config.head} head with {config.out_channels} outputs"
        f"{f'; {prefix!r} was taken off the names of its tensors' if prefix else ''}"
        f"{_meaning_of_outputs(student, target)}{_inputs_not_read(student, target)}"
    )


def require_of_inputs(overrides: Iterable[str]) -> None:
    """Refuse `section.key=value` overrides of a recipe that a conversion would ignore.

    Raises:
        StudentError: an override of something else than `inputs` and `student.backbone`.
    """
    for override in overrides:
        key, _, _ = override.partition("=")
        if key != "student.backbone" and not key.startswith("inputs."):
            raise StudentError(
                f"{key} has no effect here: the network is recorded in the file",
                where="--set",
                fix="Leave out this key; for student.activation pass --activation.",
            )


def read_official(
    path: Path, inputs: ScanInputs | None = None, activation: str | None = None, backbone: str | None = None
) -> Student:
    """A student with the weights of an official file, in eval mode on the CPU.

    Args:
        path: of a pretrained, probed, finetuned or supervised model. No code in the file is run.
        inputs: settings of the student's inputs. Default: those in the file, else the backbone's defaults.
        activation: of a WaffleIron; the file does not hold it. Default: GELU for a 2-layer head, as in ScaLR+, else
            ReLU. Required for probed and finetuned models with layer norm, which may have either.
        backbone: name of the backbone. Default: the one in scalr whose models have such tensors.

    Raises:
        StudentError: a file that is missing, damaged or of another model, with its missing and unexpected keys; names
            with different prefixes; values that are not finite; `inputs` that contradict the file.
    """
    return _read(path, inputs, activation, backbone)[1]


def _read(path: Path, inputs: ScanInputs | None, activation: str | None, backbone: str | None) -> tuple[str, Student]:
    """The prefix that was removed from the names, and the student."""
    content, tensors = _content(path)
    files = _files(backbone, path) if backbone else _files_with(tensors, path)
    prefix, tensors = _without_prefix(tensors, files, path)
    require_finite(tensors, path, "Pass a checkpoint from before the training diverged.")
    tensors = files.student_tensors(tensors)
    try:
        config = files.config(tensors, path, activation)
    except StudentError as error:  # from a setting that the file's tensors put out of bounds
        raise error if error.where == str(path) else error.inside(str(path)) from None
    said = files.inputs(tensors, content, path)
    return prefix, _student_of(tensors, files, path, config, _inputs(config, said, inputs, path))


def _inputs(config: BackboneConfig, said: Mapping[str, Any], given: ScanInputs | None, path: Path) -> ScanInputs:
    """The given inputs, which must agree with the file; if none are given, the defaults with the file's values."""
    try:
        own = backbone_class(config.backbone).Inputs(**said)
    except StudentError as error:
        raise error.inside(str(path)) from None
    differences = [
        f"{name} is {getattr(own, name)} in the file, {getattr(given, name)} in the recipe"
        for name in said
        if given is not None and getattr(given, name) != getattr(own, name)
    ]
    if differences:
        raise StudentError(
            f"the file records other inputs than the recipe ({'; '.join(differences)})",
            where=path,
            fix="Leave --recipe and --set out, or set the file's values.",
        )
    return given or own


def _files(backbone: str, path: Path) -> OfficialFiles:
    found = backbone_class(backbone)
    if found.official is None:
        raise StudentError(
            f"the backbone {backbone} has no official file format",
            where=path,
            fix="Use the .safetensors file of 'scalr distill', or write the attribute official of the backbone.",
        )
    return found.official


def _files_with(tensors: Mapping[str, torch.Tensor], path: Path) -> OfficialFiles:
    """The kind of official files whose models have such tensors."""
    known = [files for name in BACKBONES if (files := backbone_class(name).official) is not None]
    counts = [len([name for name in tensors if _own_name(name).startswith(files.parts)]) for files in known]
    if not any(counts):
        raise StudentError(
            "the file has no backbone that scalr knows",
            where=path,
            fix=f"Pass an official checkpoint of {', or of '.join(files.source for files in known)}.",
        )
    return known[counts.index(max(counts))]


def _student_of(
    tensors: dict[str, torch.Tensor],
    files: OfficialFiles,
    path: Path,
    config: BackboneConfig,
    inputs: ScanInputs,
) -> Student:
    with torch.random.fork_rng(devices=[]):
        student = Student(config, inputs)
    own = student.state_dict()
    # Older files lack the counters of batch norms, which are not used here.
    tensors = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")} | tensors
    expected, found = files.official_tensors(own), files.official_tensors(tensors)
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(found[name].shape)}, not {tuple(value.shape)}"
            for name, value in expected.items()
            if name in found and found[name].shape != value.shape
        ],
        "not floating-point": [
            f"{name} {found[name].dtype}"
            for name, value in expected.items()
            if name in found and value.is_floating_point() and not found[name].is_floating_point()
        ],
    }
    if any(differences.values()):
        raise files.refused(path, listed(differences))
    student.load_state_dict(tensors)
    return student.eval()


def _meaning_of_outputs(student: Student, target: Path) -> str:
    """For a student of standardised targets: what the head's outputs mean in a file of the target's kind."""
    if student.standardisation is None:
        return ""
    if target.suffix == ".pt2":
        return "; its outputs are in the teacher's space, mean included"
    return "; its outputs point along the teacher's vectors less their mean, which such a file cannot hold"


def _inputs_not_read(student: Student, target: Path) -> str:
    """Input settings that differ from the defaults and that the official code does not read from the file."""
    if target.suffix not in (".pth", ".pt"):
        return ""
    files, inputs = student.backbone.official, student.input_config
    values = asdict(inputs)
    lost = [
        f"{each.name} {values[each.name]}"
        for each in fields(inputs)
        if getattr(inputs, each.name) != each.default and each.name not in files.inputs_read
    ]
    return f"; the code of {files.source} does not learn these inputs from it: {', '.join(lost)}" if lost else ""


def official_tensors(student: Student) -> dict[str, torch.Tensor]:
    """The student's state dict with official names and shapes.

    The rotation of a standardisation is undone in the last layer. Its mean and lengths have no place in the file.
    """
    tensors = {name: value for name, value in student.state_dict().items() if not name.startswith("standardisation.")}
    if student.standardisation is not None:
        _, last = head_among(tensors)
        for name in (last, last.removesuffix("weight") + "bias"):
            tensors[name] = student.standardisation.unrotated(tensors[name].movedim(0, -1)).movedim(-1, 0)
    return student.backbone.official.official_tensors(tensors)


def write_official(student: Student, path: Path) -> None:
    """Write a student in the official format, to a temporary file that is renamed into place.

    Raises:
        StudentError: a backbone without official files, or a file that cannot be written.
    """
    files = _files(student.config.backbone, path)
    tensors = {name: value.cpu() for name, value in official_tensors(student).items()}
    content = BytesIO()  # torch's own writer does not report a full disk
    torch.save(files.content(tensors, student.input_config), content)  # stores shared tensors once
    with written_aside(path, StudentError) as temporary:
        temporary.write_bytes(content.getbuffer())


def _own_name(name: str) -> str:
    return name.removeprefix(PREFIX.match(name)[0])


def _without_prefix(
    tensors: dict[str, torch.Tensor], files: OfficialFiles, path: Path
) -> tuple[str, dict[str, torch.Tensor]]:
    """Remove the prefix that all parts of a student share; other names are not changed."""
    firsts: dict[str, str] = {}
    for name in tensors:
        if _own_name(name).startswith(files.parts):
            firsts.setdefault(PREFIX.match(name)[0], name)
    if len(firsts) > 1:
        raise StudentError(
            f"the file holds several models: names of its tensors begin in several ways ({', '.join(firsts.values())})",
            where=path,
            fix="Pass a file with the tensors of one model alone.",
        )
    prefix = next(iter(firsts), "")
    return prefix, {name.removeprefix(prefix): value for name, value in tensors.items()}


def _content(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The content of a file, and the model's tensors in it."""
    with explained(path, StudentError, missing="Pass an official file, .pth or .pt, or a student.safetensors."):
        values = torch.load(path, map_location="cpu", weights_only=True)
    content = values if isinstance(values, dict) else {}
    values = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), values)
    named = isinstance(values, dict) and all(isinstance(name, str) for name in values)
    if not named or not all(map(_has_real_numbers, values.values())):
        raise StudentError(
            f"the file has no {', '.join(WRAPPERS)} with tensors", where=path, fix="Pass an official checkpoint."
        )
    return content, values


def _has_real_numbers(value: object) -> bool:
    """Whether a value is a tensor that can be a layer's weight."""
    is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return is_plain and not (value.is_meta or value.is_quantized or value.is_complex())
