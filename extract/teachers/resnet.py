"""Use a ResNet of timm as a teacher: its last feature map, at the network's stride of 32 or, by dilation, at 4."""

from __future__ import annotations

import torch

FEATURE = "layer4"  # the output of the last stage, after its ReLU; the only feature of a ResNet
FULL_STRIDE = 32
# Size of the activations by stride, in units of the last map in float32: at 32, maps of the first stage are larger.
LIVE_TENSORS = {32: 40, 4: 5}


def with_stride(model: torch.nn.Module, stride: int) -> torch.nn.Module:
    """Give a ResNet of timm another output stride; its weights do not change.

    timm supports strides down to 8. This is torchvision's rule (`replace_stride_with_dilation`), with which SLidR gets
    a stride of 4: a stage that no longer halves its map doubles the dilation instead, from its second block on.

    Args:
        model: a model of stride 32; it is changed in place.
        stride: 32, or 4, at which no stage after the first halves its map.
    """
    if stride == FULL_STRIDE:
        return model
    dilation = 1
    for stage in (model.layer2, model.layer3, model.layer4):
        first, *others = stage
        first.downsample[0].stride = (1, 1)
        _dilate(first.conv2, dilation)
        dilation *= 2
        for block in others:
            _dilate(block.conv2, dilation)
    return model


def _dilate(convolution: torch.nn.Conv2d, dilation: int) -> None:
    convolution.stride = (1, 1)
    convolution.dilation = convolution.padding = (dilation, dilation)


class LastMap:
    """Computes a ResNet's last feature map.

    Args:
        model: a ResNet of timm.
        stride: stride of its last map [px].

    Attributes:
        feature, dim, activation, norm_eps, live_tensors: as in `FeatureReader`.
    """

    def __init__(self, model: torch.nn.Module, stride: int) -> None:
        self.model, self.feature, self.dim = model, FEATURE, model.num_features
        self.live_tensors = LIVE_TENSORS[stride]
        self.activation, self.norm_eps = type(model.act1).__name__, model.bn1.eps

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to features (B, dim, h, w)."""
        return self.model.forward_features(images)
