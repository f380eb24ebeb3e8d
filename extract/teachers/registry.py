"""The named teachers, and what is known of each before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from .choices import OfficialPosEmbed, PosEmbed

USUAL_IMAGE_SIZE = (224, 448)  # (h, w) [px], as in ScaLR
if TYPE_CHECKING:
    import torch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TeacherSpec:
    """Properties of a teacher that are known before it is loaded.

    Attributes:
        timm_name: name of its model in timm.
        patch_size: side of a patch, or the stride of a ResNet's feature map [px].
        dim: channels of a patch token, or of a ResNet's feature map.
        million_parameters: number of parameters in millions, rounded.
        licence: licence of the weights.
        feature: the default feature, see `Feature`.
        pos_embed: how position embeddings are resized by default; None if the network has none.
        official_pos_embed: how its official code resizes them; None if that is unknown.
        mean, std: mean and standard deviation of RGB in [0, 1]; None takes timm's.
        options: options of timm's model that differ from timm's defaults.
        network: kind of network.
        weights_url: address of its weights file, if timm's model of that name has other weights.
        only_segments: whether its maps are so large that only vectors of superpixels are stored.
    """

    timm_name: str
    patch_size: int
    dim: int
    million_parameters: int
    licence: str
    feature: str = "x_prenorm"
    pos_embed: PosEmbed | None = "timm"
    official_pos_embed: OfficialPosEmbed | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    network: Literal["vit", "resnet"] = "vit"
    weights_url: str | None = None
    only_segments: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """The default image size (h, w) [px]: ScaLR's, or the nearest that the patch size divides."""
        height, width = (max(1, round(side / self.patch_size)) * self.patch_size for side in USUAL_IMAGE_SIZE)
        return height, width

    @property
    def for_research_only(self) -> bool:
        """Whether the licence of the weights forbids commercial use."""
        return "-nc" in self.licence.lower()


def _dinov2(size: str, dim: int, million_parameters: int) -> dict[str, TeacherSpec]:
    letter = size[0]
    both = (14, dim, million_parameters, "Apache-2.0")
    plain, registers = (f"vit_{size}_patch14_{name}.lvd142m" for name in ("dinov2", "reg4_dinov2"))
    return {
        f"dinov2_vit{letter}14": TeacherSpec(plain, *both, official_pos_embed="scale_factor"),
        f"dinov2_vit{letter}14_reg": TeacherSpec(registers, *both, official_pos_embed="timm"),
    }


def _dino(size: str, patch_size: int, dim: int, million_parameters: int) -> dict[str, TeacherSpec]:
    timm_name = f"vit_{size}_patch{patch_size}_224.dino"
    spec = TeacherSpec(timm_name, patch_size, dim, million_parameters, "Apache-2.0", official_pos_embed="scale_factor")
    return {f"dino_vit{size[0]}{patch_size}": spec}


def _mae(size: str, patch_size: int, dim: int, million_parameters: int) -> dict[str, TeacherSpec]:
    timm_name = f"vit_{size}_patch{patch_size}_224.mae"
    spec = TeacherSpec(timm_name, patch_size, dim, million_parameters, "CC-BY-NC-4.0", official_pos_embed="size")
    return {f"mae_vit{size[0]}{patch_size}": spec}


def _dinov3(name: str, size: str, dim: int, million_parameters: int) -> dict[str, TeacherSpec]:
    timm_name = f"vit_{size}_patch16_dinov3.lvd1689m"
    spec = TeacherSpec(timm_name, 16, dim, million_parameters, "DINOv3 License", official_pos_embed="timm")
    return {f"dinov3_{name}": spec}


def _layer_norm_1e6(*args: Any, **kwargs: Any) -> torch.nn.LayerNorm:
    import torch  # listing the teachers does not need torch

    return torch.nn.LayerNorm(*args, eps=1e-6, **kwargs)


_clip = partial(
    TeacherSpec, patch_size=16, dim=768, million_parameters=86, licence="MIT",
    feature="maskclip", pos_embed="official", official_pos_embed="size",
)  # fmt: skip
_moco_v2 = partial(
    TeacherSpec, "resnet50", dim=2048, million_parameters=24, licence="CC-BY-NC-4.0", feature="layer4", pos_embed=None,
    mean=IMAGENET_MEAN, std=IMAGENET_STD, options=MappingProxyType({"num_classes": 0}), network="resnet",
    weights_url="https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
)  # fmt: skip

TEACHERS = {
    **_dinov2("small", 384, 22),
    **_dinov2("base", 768, 86),
    **_dinov2("large", 1024, 304),
    **_dinov2("giant", 1536, 1135),
    **_dino("small", 8, 384, 22),
    **_dino("base", 8, 768, 86),
    **_dino("small", 16, 384, 22),
    **_dino("base", 16, 768, 86),
    **_mae("base", 16, 768, 86),
    **_mae("large", 16, 1024, 304),
    **_mae("huge", 14, 1280, 631),
    # The MaskCLIP repository runs CLIP's weights with another activation, epsilon and image normalisation than CLIP's
    # training. The first entry follows the repository, the second CLIP's training.
    "maskclip_vitb16": _clip(
        "vit_base_patch16_clip_224.openai", mean=IMAGENET_MEAN, std=IMAGENET_STD,
        options=MappingProxyType({"norm_layer": _layer_norm_1e6}),
    ),
    "maskclip_vitb16_openai": _clip("vit_base_patch16_clip_quickgelu_224.openai"),
    **_dinov3("vits16", "small", 384, 22),
    **_dinov3("vits16plus", "small_plus", 384, 29),
    **_dinov3("vitb16", "base", 768, 86),
    **_dinov3("vitl16", "large", 1024, 303),
    **_dinov3("vith16plus", "huge_plus", 1280, 841),
    **_dinov3("vit7b16", "7b", 4096, 6716),
    "resnet50_moco_v2": _moco_v2(patch_size=32),
    "resnet50_moco_v2_stride4": _moco_v2(patch_size=4, only_segments=True),
}  # fmt: skip


def keeps_only_segments(name: str) -> bool:
    """Whether only vectors of superpixels are stored for a teacher, see `TeacherSpec.only_segments`."""
    return name in TEACHERS and TEACHERS[name].only_segments


def list_teachers() -> str:
    """A table of all named teachers for people."""
    lines = [f"{'name':<24}{'patch':>6}{'dim':>6}{'parameters':>12}  {'licence':<16}image size"]
    for name, spec in TEACHERS.items():
        dim = 512 if spec.feature == "maskclip" else spec.dim
        height, width = spec.image_size
        lines.append(
            f"{name:<24}{spec.patch_size:>6}{dim:>6}{spec.million_parameters:>10} M  {spec.licence:<16}{height}x{width}"
        )
    return "\n".join([*lines, "timm:NAME, such as timm:vit_base_patch16_siglip_224.v2_webli: any ViT of timm"])
