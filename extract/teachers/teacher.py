"""A frozen teacher, which turns images into patch maps."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import TeacherError
from .choices import PosEmbed, Precision
from .features import Feature, FeatureReader
from .find import find_teacher
from .registry import TeacherSpec
from .resnet import LastMap
from .timm_import import quietly
from .weights import build_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a teacher; teachers with equal preprocessing share the prepared images.

    Attributes:
        image_size: (h, w) [px] to which images are resized, bilinear, antialiased, aspect not kept.
        mean, std: mean and standard deviation of RGB in [0, 1], for the normalisation.
        device: device that does the work.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def apply(self, image: np.ndarray) -> torch.Tensor:
        """Prepare an image: (H, W, 3) uint8 RGB to (3, h, w) float32."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1)[None].float()
        resized = F.interpolate(pixels, self.image_size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(each, device=self.device).view(3, 1, 1) for each in (self.mean, self.std))
        return (resized[0] / 255 - mean) / std


@dataclass(frozen=True)
class TeacherProvenance:
    """Everything that a teacher's targets depend on; two stores with equal provenance may be mixed."""

    teacher: str
    model: str
    weights: str  # "hub", "random" or "file"
    weights_sha256: str  # of the tensors before they are resized: equal for all image sizes, and for hub and file
    feature: str
    image_size: tuple[int, int]
    patch_size: int
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    activation: str
    norm_eps: float
    pos_embed: str | None  # None if the network has no position embeddings
    precision: str


class Teacher:
    """A frozen network that computes a feature for each patch.

    Attributes:
        provenance: everything that its targets depend on.
        preprocessing: how images are prepared.
        image_size: (h, w) of the prepared images [px].
        live_tensors: approximate size of the activations of an image, in units of its patch map in float32.
    """

    def __init__(self, reader: FeatureReader | LastMap, provenance: TeacherProvenance, device: torch.device) -> None:
        self.provenance = provenance
        self.name, self.patch_size, self.dim = provenance.teacher, provenance.patch_size, provenance.dim
        self.image_size, self.device = provenance.image_size, device
        self.preprocessing = Preprocessing(provenance.image_size, provenance.mean, provenance.std, device)
        self.model = reader.model.eval().requires_grad_(False).to(device)
        self._read, self.live_tensors = reader, reader.live_tensors
        self._dtype = getattr(torch, provenance.precision)

    @torch.inference_mode()
    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the patch maps (B, h / patch, w / patch, D) float32 of prepared images (B, 3, h, w).

        Raises:
            TeacherError: the batch does not fit in the GPU's memory.
        """
        try:
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                return self._read(images).permute(0, 2, 3, 1).float()
        except torch.OutOfMemoryError:
            raise TeacherError(
                f"a batch of {len(images)} images does not fit into the memory of {self.device}",
                where=self.name,
                fix="Pass a smaller --batch-size.",
            ) from None


def load_teacher(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    weights: str = "hub",
    feature: str | None = None,
    pos_embed: PosEmbed | None = None,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> Teacher:
    """Build a teacher and load its weights.

    Args:
        name: a key of `TEACHERS`, or `timm:NAME`.
        image_size: (h, w), multiples of the patch size or stride [px]; None is 224x448, as in ScaLR, or near it.
        weights: "hub", "random" (seeded, for tests only) or the path of a checkpoint, official or timm's.
        feature: see `Feature`; None is the default: `x_prenorm`, `maskclip` for MaskCLIP, `layer4` for ResNets.
        pos_embed: "timm", "official", or None for the default: timm, official for MaskCLIP, none for ResNets.
        precision: precision of the forward pass (autocast).
        device: device that runs the teacher.

    Raises:
        TeacherError: an unknown name or feature, an image size that does not fit, weights missing or not fitting.
    """
    with quietly():
        spec = find_teacher(name)
    image_size, feature = image_size or spec.image_size, feature or spec.feature
    _check_image_size(name, spec, image_size)
    _check_feature(name, spec, feature)
    _check_pos_embed(name, spec, pos_embed)
    _check_hub(name, spec, weights)
    pos_embed = pos_embed or spec.pos_embed
    if spec.for_research_only and weights != "random":
        logger.warning("the licence of the weights of %s excludes commercial use (%s)", name, spec.licence)
    with quietly():
        model, sha256 = build_model(spec, image_size, weights, pos_embed, needs_head=feature == "maskclip")
    reader = _reader(spec, model, feature)
    provenance = TeacherProvenance(
        teacher=name,
        model=spec.timm_name,
        weights=weights if weights in ("hub", "random") else "file",
        weights_sha256=sha256,
        feature=str(reader.feature),
        image_size=image_size,
        patch_size=spec.patch_size,
        dim=reader.dim,
        mean=spec.mean or tuple(model.pretrained_cfg["mean"]),
        std=spec.std or tuple(model.pretrained_cfg["std"]),
        activation=reader.activation,
        norm_eps=reader.norm_eps,
        pos_embed="timm" if spec.official_pos_embed == "timm" else pos_embed,
        precision=precision,
    )
    return Teacher(reader, provenance, torch.device(device))


def provenance_attributes(provenance: TeacherProvenance) -> dict:
    """Convert the provenance to plain JSON values."""
    return json.loads(json.dumps(asdict(provenance)))


def _reader(spec: TeacherSpec, model: torch.nn.Module, feature: str) -> FeatureReader | LastMap:
    if spec.network == "resnet":
        return LastMap(model, spec.patch_size)
    return FeatureReader(Feature.parse(feature).resolved(len(model.blocks)), model)


def _check_image_size(name: str, spec: TeacherSpec, image_size: tuple[int, int]) -> None:
    patch = spec.patch_size
    if all(side > 0 and side % patch == 0 for side in image_size):
        return
    around = [sorted({max(patch, side // patch * patch), max(patch, -(-side // patch) * patch)}) for side in image_size]
    valid = [f"{height}x{width}" for height, width in itertools.product(*around)]
    raise TeacherError(
        f"image size {image_size[0]}x{image_size[1]} is no multiple of {name}'s patch size {patch}",
        where="--image-size",
        fix=f"Use one of the nearest valid sizes: {', '.join(valid)}.",
    )


def _check_feature(name: str, spec: TeacherSpec, feature: str) -> None:
    if spec.network == "vit":
        Feature.parse(feature)
    elif feature != spec.feature:
        raise TeacherError(
            f"{name} is a ResNet and has no feature '{feature}'",
            where="--feature",
            fix=f"Leave out --feature: {spec.feature}, its last feature map, is the only one.",
        )


def _check_hub(name: str, spec: TeacherSpec, weights: str) -> None:
    """Refuse `--weights hub` for MoCo: the model of that name is supervised, with the same names of tensors."""
    if weights == "hub" and spec.weights_url is not None:
        raise TeacherError(
            "timm has no weights of this teacher",
            where=name,
            fix=f"Download {spec.weights_url}, then pass --weights FILE; for tests, pass --weights random.",
        )


def _check_pos_embed(name: str, spec: TeacherSpec, pos_embed: PosEmbed | None) -> None:
    if pos_embed is not None and spec.pos_embed is None:
        raise TeacherError(
            f"{name} is a ResNet and has no position embeddings", where="--pos-embed", fix="Leave out --pos-embed."
        )
    if pos_embed == "official" and spec.official_pos_embed is None:
        raise TeacherError(
            f"no official way to resize the position embeddings of {name} is known",
            where="--pos-embed",
            fix="Use --pos-embed timm.",
        )
