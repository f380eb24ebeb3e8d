"""Build models of timm with weights from the Hugging Face Hub, from a file, or random."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping

import torch

from ...checkpoint_files import first_line, tensors_digest
from ...errors import TeacherError
from ...paths import expanded
from .checkpoint import Checkpoint, model_in, read_checkpoint
from .choices import PosEmbed
from .conversion import COUNTER, Fit, Skeleton
from .misfits import check_fit, check_patches, check_size, does_not_fit
from .pos_embed import resize_officially
from .registry import TeacherSpec
from .resnet import with_stride
from .timm_import import import_timm

logger = logging.getLogger(__name__)

RANDOM_SEED = 0  # for `--weights random`
HUB_TIMEOUT_S = 5
ImageSize = tuple[int, int]  # (h, w) [px]
State = Mapping[str, torch.Tensor]


def build_model(
    spec: TeacherSpec, image_size: ImageSize, weights: str, pos_embed: PosEmbed, *, needs_head: bool
) -> tuple[torch.nn.Module, str]:
    """Build the teacher's model with position embeddings resized to the image size; also return the weights' SHA-256.

    The SHA-256 covers the tensors before any is resized: it is equal for all image sizes, for the Hugging Face Hub and
    its file, and for one model in the layouts of its makers and of timm.

    Args:
        spec: the teacher's description.
        image_size: (h, w) [px], multiples of the patch size.
        weights: "hub", "random" (seeded) or the path of a checkpoint: a timm file, an official one of DINO, DINOv2,
            DINOv3, MAE or CLIP, which timm's own conversion reads, one of MoCo v2, or Hugging Face's file or folder.
        pos_embed: how position embeddings are resized.
        needs_head: whether the feature needs the head, as MaskCLIP's needs CLIP's projection.

    Raises:
        TeacherError: weights that are missing, unreadable, or of another model.
    """
    officially = pos_embed == "official" and spec.official_pos_embed != "timm"
    if weights == "random":
        return _random(spec, image_size, officially)
    checkpoint = _from_hub(spec) if weights == "hub" else read_checkpoint(expanded(weights, TeacherError))
    return _loaded(spec, checkpoint, image_size, officially, needs_head)


def hub_answers() -> bool:
    """Whether the Hugging Face Hub can be reached now; one request, since a failing download retries for a minute."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import get_session

    try:
        return get_session().head(ENDPOINT, timeout=HUB_TIMEOUT_S).status_code < 400
    except Exception as error:  # an error of any HTTP library, or offline mode
        logger.info("the Hugging Face Hub cannot be reached: %s", first_line(error))
        return False


def _loaded(
    spec: TeacherSpec, checkpoint: Checkpoint, image_size: ImageSize, officially: bool, needs_head: bool
) -> tuple[torch.nn.Module, str]:
    skeleton, resized = _fit(spec, checkpoint, image_size)
    own_size = _own_image_size(spec, checkpoint, skeleton, resized, image_size, officially)
    own = resized if own_size == image_size else _fit(spec, checkpoint, own_size)[1]
    optional = [] if needs_head else [name for name in skeleton.tensors if skeleton.is_classifier(name)]
    check_fit(spec, checkpoint.origin, own, optional)
    check_size(spec, checkpoint.origin, resized, own_size, optional)
    _log_what_is_left(spec, checkpoint, own)
    model = _new_model(spec, own_size if officially else image_size)
    left = model.load_state_dict((own if officially else resized).taken, strict=False).missing_keys
    assert set(left) <= {*own.missing, *own.misshapen}, left
    if officially:
        _resize_officially(model, image_size, spec)
    return model, _digest(own.taken, dtypes_of=skeleton.tensors)


def _digest(tensors: State, dtypes_of: State | None = None) -> str:
    """SHA-256 of the tensors without batch norm's counters, which some files of the same weights lack."""
    return tensors_digest({name: each for name, each in tensors.items() if not name.endswith(COUNTER)}, dtypes_of)


def _fit(spec: TeacherSpec, checkpoint: Checkpoint, image_size: ImageSize) -> tuple[Skeleton, Fit]:
    skeleton = Skeleton.of(spec.timm_name, _options(spec, image_size))
    check_patches(spec, checkpoint.origin, skeleton, checkpoint.tensors)
    try:
        return skeleton, skeleton.fit(checkpoint.tensors)
    except Exception as error:  # timm's conversions assume much
        raise does_not_fit(spec, checkpoint.origin, first_line(error)) from None


def _own_image_size(
    spec: TeacherSpec, checkpoint: Checkpoint, skeleton: Skeleton, fit: Fit, image_size: ImageSize, officially: bool
) -> ImageSize:
    """The image size of a checkpoint's position embeddings; `image_size` if it has none, since any size then fits."""
    patch = spec.patch_size
    usual = skeleton.model.pretrained_cfg["input_size"][-2:]
    grids = [(height // patch, width // patch) for height, width in (image_size, usual)]
    in_official_code, in_timm = (
        skeleton.own_grid(fit, checkpoint.tensors, *grids, square=square) for square in (True, False)
    )
    if in_official_code != in_timm and not officially:
        logger.warning(
            "%s: the position embeddings may be of %dx%d or of %dx%d patches; timm assumes the latter, "
            "--pos-embed official the former",
            *(checkpoint.origin, *in_official_code, *in_timm),
        )
    grid = in_official_code if officially else in_timm
    return (grid[0] * patch, grid[1] * patch) if grid else image_size


def _log_what_is_left(spec: TeacherSpec, checkpoint: Checkpoint, fit: Fit) -> None:
    kinds = {"ignored": [*fit.ignored, *checkpoint.left_out], "missing (not needed)": fit.missing}
    for kind, names in kinds.items():
        if names:
            told = ", ".join(_one_of_each_kind(names))
            logger.info("%s for %s: %d tensors %s: %s", checkpoint.origin, spec.timm_name, len(names), kind, told)


def _one_of_each_kind(names: Iterable[str]) -> Iterator[str]:
    """Yield one name of each kind; names that differ in numbers only, as those of blocks do, are one kind."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "0", name), []).append(name)
    return (f"{first} and {len(others)} like it" if others else first for first, *others in kinds.values())


def _from_hub(spec: TeacherSpec) -> Checkpoint:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # suppresses twelve lines about retries; the failure is reported
    logger.info("weights of %s: from the cache %s, else from the Hugging Face Hub", spec.timm_name, HF_HUB_CACHE)
    try:
        content = Skeleton.of(spec.timm_name, spec.options).fetch()
    except Exception as error:  # timm, torch, safetensors and huggingface_hub have errors of their own
        raise TeacherError(
            f"the weights cannot be downloaded from the Hugging Face Hub ({first_line(error)})",
            where=spec.timm_name,
            fix="Download them on a machine with a network, then pass --weights FILE, or copy the cache that timm reads"
            f" first, {HF_HUB_CACHE} ($HF_HOME moves it); for tests, pass --weights random.",
        ) from error
    return model_in(content, spec.timm_name)


def _random(spec: TeacherSpec, image_size: ImageSize, officially: bool) -> tuple[torch.nn.Module, str]:
    """Draw random weights; position embeddings are drawn for the default size, and resized as those of a file."""
    own_size = None if officially else spec.image_size
    model = _random_model(spec, own_size)
    sha256 = _digest(model.state_dict())
    if officially:
        _resize_officially(model, image_size, spec)
    elif image_size != own_size and spec.network == "vit":
        model = _resized(model, image_size, spec)
    return model, sha256


def _random_model(spec: TeacherSpec, image_size: ImageSize | None) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return _new_model(spec, image_size)


def _resized(model: torch.nn.Module, image_size: ImageSize, spec: TeacherSpec) -> torch.nn.Module:
    """Resize a model to another image size; if timm cannot, the parts that depend on the size are drawn again."""
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=image_size)
        return model
    other, tensors = _random_model(spec, image_size), model.state_dict()
    same = {name: tensors[name] for name, own in other.state_dict().items() if own.shape == tensors[name].shape}
    other.load_state_dict(same, strict=False)
    return other


def _resize_officially(model: torch.nn.Module, image_size: ImageSize, spec: TeacherSpec) -> None:
    before, old_grid = model.pos_embed.detach(), model.patch_embed.grid_size
    model.set_input_size(img_size=image_size)
    resized = resize_officially(before, old_grid, model.patch_embed.grid_size, spec.official_pos_embed)
    model.pos_embed = torch.nn.Parameter(resized)


def _new_model(spec: TeacherSpec, image_size: ImageSize | None) -> torch.nn.Module:
    model = import_timm().create_model(spec.timm_name, pretrained=False, **_options(spec, image_size))
    return with_stride(model, spec.patch_size) if spec.network == "resnet" else model


def _options(spec: TeacherSpec, image_size: ImageSize | None) -> dict:
    """Options of timm's model; the image size is left out for a ResNet, which takes images of any size."""
    return {**spec.options, **({"img_size": image_size} if image_size and spec.network == "vit" else {})}
