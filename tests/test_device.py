"""Which devices can be asked for."""

from __future__ import annotations

import pytest
import torch

from scalr.device import resolve_device
from scalr.errors import ScalrError


@pytest.mark.parametrize("name", ["meta", "xla", "vulkan", "ipu", "hpu", "privateuseone", "tpu", "cuda:99", "cpu:x"])
def test_a_device_on_which_nothing_can_be_computed_is_refused_in_a_line(name):
    with pytest.raises(ScalrError, match=rf"device '{name}' cannot be used here \(.{{10,110}}\)\. Use auto") as found:
        resolve_device(name)
    assert len(str(found.value)) < 200


def test_a_device_that_computes_is_used():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
