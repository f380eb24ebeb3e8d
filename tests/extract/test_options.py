"""What an extraction is asked for gets to where it counts: frames, teachers, and the machine."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from calls import SeenEnough, calls_of
from scalr.extract import run
from scalr.extract.config import ExtractConfig
from scalr.extract.encoding import Encoding
from scalr.extract.plan import Part
from scalr.extract.preparation import Selection
from tiny import TinyDataset, tiny_teachers

CONFIG = ExtractConfig(
    root="r", out="o", teachers=("a", "b"), dataset="d", split="s", image_size=(28, 56), encoding="patch", dtype="int8",
    points="visible", occlusion="drop", on_error="skip", weights=("a=file", "b=random"), feature="x_norm",
    pos_embed="official", precision="bfloat16", device="x", batch_size=5, frames_per_block=2, part=Part(1, 3),
)  # fmt: skip


def test_teachers_are_loaded_as_asked_for(monkeypatch):
    opened = calls_of(monkeypatch, run, "open_dataset", "a dataset")
    loaded = calls_of(monkeypatch, run, "load_teacher", "a teacher")
    resolved = calls_of(monkeypatch, run, "resolve_device", "its device")
    assert run._open_inputs(CONFIG, "x") == ("a dataset", ["a teacher"] * 2)
    assert opened == [(("d", Path("r"), "s"), {"need": "images"})]
    assert resolved == [(("x",), {})]
    options = {"image_size": (28, 56), "feature": "x_norm", "pos_embed": "official", "precision": "bfloat16"}
    options["device"] = "its device"
    assert loaded == [(("a",), {"weights": "file", **options}), (("b",), {"weights": "random", **options})]


def test_blocks_are_computed_as_asked_for(monkeypatch):
    made = calls_of(monkeypatch, run, "Pipeline")
    teachers, probed = [SimpleNamespace(name=name, device=SimpleNamespace(type="cpu")) for name in "ab"], []

    class Writer:
        def batch_size(self, name, device, probe):
            probed.append((name, device))
            return 9

        store = "a store"

        def statistics(self, names, source, measure):
            measured.append((names, source, measure(["b"])))
            return "statistics"

    measured, sampled = [], calls_of(monkeypatch, run, "sample_statistics", "of b")
    superpixels = SimpleNamespace(settings={})
    prepared = Selection("visible", "drop", superpixels)
    for config in (CONFIG, replace(CONFIG, batch_size=None)):
        run._pipeline(config, "a dataset", teachers, Writer(), "a source", prepared)
    assert measured == [(("a", "b"), "a source", "of b")] * 2
    selection = Selection("visible", "drop")  # the sample's: statistics need no superpixels
    assert [arguments for arguments, _ in sampled] == [
        ("a dataset", [teachers[1]], selection, {"a": size, "b": size}, "a store", "a source") for size in (5, 9)
    ]
    options = {"selection": prepared, "on_error": "skip", "statistics": "statistics"}
    for (arguments, given), size in zip(made, (5, 9), strict=True):
        assert arguments[:3] == ("a dataset", teachers, Encoding("patch", "int8"))
        assert given == {"batch_sizes": {"a": size, "b": size}, **options}
    assert probed == [("a", "cpu"), ("b", "cpu")]


def test_an_estimate_is_of_what_was_asked_for(monkeypatch):
    calls_of(monkeypatch, run, "open_dataset", "a dataset")
    teacher = SimpleNamespace(name="a")
    calls_of(monkeypatch, run, "load_teacher", teacher)
    resolved = calls_of(monkeypatch, run, "resolve_device")
    estimated = calls_of(monkeypatch, run, "estimate")
    run.estimate_extraction(replace(CONFIG, teachers=("a",), weights=("hub",)))
    assert resolved == [(("x",), {})]
    options = {"selection": Selection("visible", "drop"), "on_error": "skip", "frames_per_block": 2}
    arguments = ("a dataset", [teacher], Encoding("patch", "int8"), Path("o"))
    assert estimated == [(arguments, {"batch_sizes": {"a": 5}, **options})]


@pytest.mark.parametrize(
    ("options", "place", "given"),
    [({"workers": 3}, "local_cluster", 3), ({"scheduler": "tcp://a:1"}, "existing_cluster", "tcp://a:1")],
)
def test_processes_are_those_that_were_asked_for(monkeypatch, tmp_path, options, place, given):
    """The process that was started then computes nothing, and leaves the GPU to the others, which run elsewhere."""
    monkeypatch.chdir(tmp_path)
    devices, clusters = [], []
    (tmp_path / "data").mkdir()
    dataset, teacher = TinyDataset(tmp_path / "data"), tiny_teachers()["coordinates"]

    def open_inputs(config, device):
        devices.append(device)
        return dataset, [teacher]

    @contextmanager
    def cluster(argument):
        clusters.append(argument)
        yield "a client"

    monkeypatch.setattr(run, "_open_inputs", open_inputs)
    monkeypatch.setattr(run, place, cluster)
    computed = calls_of(monkeypatch, run, "run_on_cluster", SeenEnough())
    config = ExtractConfig(
        root="data", out="s.zarr", teachers=("coordinates",), weights=("w.pth",), superpixels="data", device="x",
        **options,
    )  # fmt: skip
    with pytest.raises(SeenEnough):
        run.extract(config)
    assert (devices, clusters) == (["cpu"], [given])
    client, extractor, sent, blocks = computed[0][0]
    assert (client, extractor, sent.device, len(blocks)) == ("a client", run.extractor, "x", 1)
    assert (sent.root, sent.out, sent.superpixels) == (tmp_path / "data", tmp_path / "s.zarr", tmp_path / "data")
    assert sent.weights == (f"coordinates={tmp_path}/w.pth",)
