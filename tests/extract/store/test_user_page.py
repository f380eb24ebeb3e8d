"""docs/store.md: its commands extend, check and shrink a store as the page says, and its Python reads one."""

from __future__ import annotations

import re
import shlex

import pytest
from click.testing import CliRunner

import scalr
from doc_examples import DOCS, example
from scalr.cli import main

# Teachers whose random weights are drawn in a moment, and whose patches divide one size of image.
STAND_INS = {
    "dinov2_vitl14": "dinov2_vits14",
    "maskclip_vitb16": "dino_vits8",
    "/scratch/": "",
    "--sample 12": "--sample 1",
}
MORE = {"extract": "--weights random --image-size 56x56 --batch-size 6", "remove": "--yes"}


@pytest.mark.slow
def test_the_commands_of_the_page_in_its_order(synthetic_world, tmp_path, monkeypatch):
    text = (DOCS / "store.md").read_text().replace("/data/nuscenes", str(synthetic_world))
    for name, stand_in in STAND_INS.items():
        text = text.replace(name, stand_in)
    monkeypatch.chdir(tmp_path)
    held = []
    for line in re.findall(r"(?m)^    scalr (.*)$", text):
        verb = line.split()[0]
        done = CliRunner().invoke(main, shlex.split(f"{line} {MORE.get(verb, '')}"))
        assert done.exit_code == 0, done.output
        store = scalr.open_store("store.zarr")
        held.append((verb, {source.split for source in store.sources}, set(store.teachers)))
        if verb == "verify" and "--repair" in line:
            exec(example("store.md", "python"), {})
    both = {"dinov2_vits14", "dino_vits8"}
    assert held[:3] == [
        ("extract", {"train"}, {"dinov2_vits14"}),
        ("extract", {"train", "val"}, {"dinov2_vits14"}),
        ("extract", {"train", "val"}, both),
    ]
    assert held[-3:] == [
        ("verify", {"train", "val"}, both),
        ("remove", {"train", "val"}, {"dino_vits8"}),
        ("remove", {"train"}, {"dino_vits8"}),
    ]
