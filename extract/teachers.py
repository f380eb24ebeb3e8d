"""Frozen vision transformers: images in, patch maps out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import TeacherError, did_you_mean

RANDOM_SEED = 0  # of `--weights random`


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher under its usual name: its model in timm, patch size [px] and feature dimension."""

    timm_name: str
    patch_size: int
    dim: int


TEACHERS = {
    "dinov2_vits14": TeacherSpec("vit_small_patch14_dinov2.lvd142m", 14, 384),
    "dinov2_vitb14": TeacherSpec("vit_base_patch14_dinov2.lvd142m", 14, 768),
    "dinov2_vitl14": TeacherSpec("vit_large_patch14_dinov2.lvd142m", 14, 1024),
    "dinov2_vitg14": TeacherSpec("vit_giant_patch14_dinov2.lvd142m", 14, 1536),
}

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TeacherProvenance:
    """All that a teacher's targets depend on; two stores with equal provenance may be mixed."""

    teacher: str
    model: str
    weights: str  # "hub", "random" or "file"
    weights_sha256: str  # over the tensors as loaded, so that a file and the hub agree
    feature: str
    image_size: tuple[int, int]
    patch_size: int
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pos_embed: str
    precision: str


class Teacher:
    """A frozen ViT that gives the last block's patch tokens before the final norm (`x_prenorm`).

    Attributes:
        provenance: what its targets depend on.
        image_size: (h, w) that images are resized to [px].
    """

    def __init__(self, model: torch.nn.Module, provenance: TeacherProvenance, device: torch.device) -> None:
        self.provenance = provenance
        self.name, self.patch_size, self.dim = provenance.teacher, provenance.patch_size, provenance.dim
        self.image_size = provenance.image_size
        self.device = device
        self._model = model.eval().requires_grad_(False).to(device)
        self._mean = torch.tensor(provenance.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(provenance.std, device=device).view(3, 1, 1)
        self._dtype = getattr(torch, provenance.precision)

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        """Resize (bilinear, antialiased, aspect not kept) and normalise (H, W, 3) uint8 RGB to (3, h, w) float32."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1)[None].float()
        resized = F.interpolate(pixels, self.image_size, mode="bilinear", antialias=True, align_corners=False)
        return (resized[0] / 255 - self._mean) / self._std

    @torch.inference_mode()
    def patch_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Patch maps (B, h / patch, w / patch, D) float32 of prepared images (B, 3, h, w)."""
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            features = self._model.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[0]
        return features.permute(0, 2, 3, 1).float()


def load_teacher(
    name: str,
    *,
    image_size: tuple[int, int] = (224, 448),
    weights: str = "hub",
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> Teacher:
    """Build a teacher and load its weights.

    Args:
        name: a key of `TEACHERS`.
        image_size: (h, w), multiples of the patch size [px]; 224x448 in ScaLR.
        weights: "hub", "random" (seeded: for tests and demos) or the path of a checkpoint, official or timm.
        precision: of the forward pass (autocast).
        device: where it runs.

    Raises:
        TeacherError: unknown name, an image size that does not fit, weights missing or not fitting.
    """
    if name not in TEACHERS:
        raise TeacherError(
            f"unknown teacher '{name}'{did_you_mean(name, TEACHERS)}",
            where="--teacher",
            fix=f"Use one of: {', '.join(TEACHERS)}.",
        )
    spec = TEACHERS[name]
    _check_image_size(name, spec, image_size)
    model = _create_model(spec, image_size, weights)
    provenance = TeacherProvenance(
        teacher=name,
        model=spec.timm_name,
        weights=weights if weights in ("hub", "random") else "file",
        weights_sha256=_sha256(model),
        feature="x_prenorm",
        image_size=image_size,
        patch_size=spec.patch_size,
        dim=spec.dim,
        mean=tuple(model.pretrained_cfg["mean"]),
        std=tuple(model.pretrained_cfg["std"]),
        pos_embed="timm",
        precision=precision,
    )
    return Teacher(model, provenance, torch.device(device))


def provenance_attributes(provenance: TeacherProvenance) -> dict:
    """The provenance as plain JSON values."""
    return json.loads(json.dumps(asdict(provenance)))


def _create_model(spec: TeacherSpec, image_size: tuple[int, int], weights: str) -> torch.nn.Module:
    timm = _import_timm()
    options: dict = {"img_size": image_size, "num_classes": 0}
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return timm.create_model(spec.timm_name, pretrained=False, **options)
    if weights != "hub":
        if not Path(weights).is_file():
            raise TeacherError(
                "the weights file is missing", where=weights, fix="Pass --weights with a checkpoint file or 'random'."
            )
        # Through the overlay, timm converts official files too; `checkpoint_path=` would not.
        options["pretrained_cfg_overlay"] = {"file": weights}
    try:
        return timm.create_model(spec.timm_name, pretrained=True, **options)
    except Exception as error:  # timm, torch, safetensors and the hub each raise their own
        raise _weights_error(spec, weights, error) from error


def _weights_error(spec: TeacherSpec, weights: str, error: Exception) -> TeacherError:
    reason = str(error).split("\n")[0][:300]
    if weights == "hub":
        return TeacherError(
            f"its weights cannot be had from the hub ({type(error).__name__}: {reason})",
            where=spec.timm_name,
            fix="Fetch the weights where there is a network, then pass --weights FILE"
            " (or fill the cache that $HF_HOME names); --weights random makes a dry run.",
        )
    return TeacherError(
        f"the weights do not fit {spec.timm_name} ({type(error).__name__}: {reason})",
        where=weights,
        fix="Pass the official or timm checkpoint of this very teacher.",
    )


def _check_image_size(name: str, spec: TeacherSpec, image_size: tuple[int, int]) -> None:
    if all(side > 0 and side % spec.patch_size == 0 for side in image_size):
        return
    valid = "x".join(str(max(1, round(side / spec.patch_size)) * spec.patch_size) for side in image_size)
    raise TeacherError(
        f"image size {image_size[0]}x{image_size[1]} is no multiple of {name}'s patch size {spec.patch_size}",
        where="--image-size",
        fix=f"The nearest valid size is {valid}.",
    )


def _sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _import_timm():
    """Import timm, which imports torchvision, on machines where torch is a CPU build.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled operators do not load, and its
    Python part then fails to register fake kernels for two of them. We call neither, so declaring them is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm
