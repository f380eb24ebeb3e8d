from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from doc_examples import example
from scalr.cli import main
from scalr.extract.teachers import registry
from scalr.extract.teachers.registry import TEACHERS
from scalr.extract.teachers.timm_import import import_timm


@pytest.mark.parametrize("name", TEACHERS)
def test_the_table_is_what_timm_has(name):
    """Patch, dimension and size of each model, built without memory; its licence where timm states one."""
    spec, timm = TEACHERS[name], import_timm()
    with torch.device("meta"):
        model = timm.create_model(spec.timm_name, **spec.options)
        assert spec.dim == model.num_features
        if spec.network == "vit":
            assert spec.patch_size == model.patch_embed.patch_size[0]
        positions = getattr(model, "pos_embed", None)
        parameters = sum(each.numel() for each in model.parameters() if each is not positions) / 1e6
    assert spec.million_parameters == pytest.approx(parameters, abs=1.5, rel=0.01)
    config = timm.get_pretrained_cfg(spec.timm_name)
    assert config.hf_hub_id
    if spec.weights_url is None:
        assert spec.for_research_only == ("-nc" in config.license)
    assert spec.image_size == (224, 448)
    assert spec.mean is not None or tuple(config.mean) in (registry.IMAGENET_MEAN, (0.48145466, 0.4578275, 0.40821073))


def test_the_list_has_every_name():
    """On the command line, and in docs/teachers.md."""
    shown = CliRunner().invoke(main, ["extract", "--list-teachers"]).output
    table = shown.splitlines()
    assert [line.split()[0] for line in table[1 : 1 + len(TEACHERS)]] == list(TEACHERS)
    assert next(line for line in table if line.startswith("mae_vitl16")).split() == [
        *("mae_vitl16", "16", "1024", "304", "M", "CC-BY-NC-4.0", "224x448")
    ]
    assert example("teachers.md", "text") == shown
