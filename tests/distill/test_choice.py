"""What a run learns from, also where others have added to its stores since it began."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from scalr.distill import run
from scalr.distill.choice import Wanted, choose
from scalr.distill.interruption import Signals, StoppedError
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.errors import DamagedError, StoreError, StudentError
from scalr.extract.store import open_store
from tiny import TinyDataset, extract_with, tiny_teachers

SMALL = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2", "inputs.num_neighbours=4")


class Workplace:
    """Stores and runs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir()

    def extract(self, store: str = "s.zarr", *, dataset="nuscenes", split="train", teacher="coordinates") -> Path:
        frames = TinyDataset(self.folder / "images", num_frames=2)
        frames.name, frames.split = dataset, split
        out = self.folder / store
        return extract_with(frames, tiny_teachers(), out, teachers=(teacher,), frames_per_block=1).path

    def distill(self, *caches: str, out: str = "run", overrides: tuple[str, ...] = (), **options) -> list[float]:
        recipe = load_recipe("scalr_wi256", [*SMALL, *overrides])
        paths = tuple(self.folder / cache for cache in caches or ("s.zarr",))
        return distill(
            DistillConfig(caches=paths, out=self.folder / out, recipe=recipe, device="cpu", **options)
        ).losses

    def resume(self, *caches: str, **options) -> list[float]:
        return self.distill(*caches, resume=True, **options)

    def start(self, *caches: str, **options) -> None:
        """Kill a run before its first checkpoint."""

        def killed(*_, **__):
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "train", killed)
            with pytest.raises(KeyboardInterrupt):
                self.distill(*caches, **options)

    def stop(self, *caches: str, **options) -> None:
        """Stop a run after its first step, with a checkpoint."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Signals, "stop", property(lambda self: True, lambda self, value: None), raising=False)
            with pytest.raises(StoppedError, match="after step 1 of 2"):
                self.distill(*caches, **options)

    def recorded(self, out: str = "run") -> dict:
        """The teachers and the sources of each store in a run's config.yaml."""
        values = yaml.safe_load((self.folder / out / "config.yaml").read_text())
        sources = [[(each["dataset"], each["split"]) for each in store["sources"]] for store in values["stores"]]
        return {"teachers": list(values["teachers"]), "sources": sources}


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(tmp_path)


def test_teachers_count_alike_unless_their_weight_is_given(extract_tiny):
    store = extract_tiny("coordinates", "doubled")
    wanted = Wanted(("coordinates", "doubled"), None)
    assert choose([store], wanted, {}, None)[0].teachers == {"coordinates": 1.0, "doubled": 1.0}
    assert choose([store], wanted, {"doubled": 2}, None)[0].teachers == {"coordinates": 1.0, "doubled": 2.0}


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("teachers/coordinates/zarr.json", "are not recorded any more"),
        ("sources/000/zarr.json", "are not recorded any more"),
        ("blocks/000000/points/c/0/0", "points"),
        ("blocks/000000/targets/coordinates/vectors/c/0/0", "vectors"),
    ],
)
def test_what_a_store_has_lost_is_said_before_anything_is_learnt(extract_tiny, lost, message):
    store = extract_tiny()
    (store.path / lost).unlink()
    with pytest.raises(DamagedError, match=message):
        choose([open_store(store.path)], Wanted(("coordinates",), "train"), {}, None)


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Workplace:
    """A run that went through, `whole`, one that was killed, `started`, and one with a checkpoint, `stopped`.

    Since then, others have added another teacher and another split, and are adding another dataset with the same split.
    """
    place = Workplace(tmp_path_factory.mktemp("grown"))
    place.extract()
    place.distill(out="whole")
    place.start(out="started")
    place.stop(out="stopped")
    place.extract(teacher="doubled")
    place.extract(split="val")
    place.extract(dataset="other")
    (place.folder / "s.zarr/index/coordinates/000005.parquet").unlink()
    files = {name: {path.name for path in (place.folder / name).iterdir()} for name in ("started", "stopped")}
    assert files["started"] == {"config.yaml"}
    assert {"config.yaml", "checkpoint.pt"} <= files["stopped"]
    return place


@pytest.fixture
def copied(grown, tmp_path):
    """Call with the name of a run in `grown` for the name of a copy to go on with."""

    def call(name: str) -> str:
        return str(shutil.copytree(grown.folder / name, tmp_path / name))

    return call


ONE_SOURCE = {"teachers": ["coordinates"], "sources": [[("nuscenes", "train")]]}


@pytest.mark.parametrize("name", ["started", "stopped"])
def test_a_run_resumes_with_what_it_was_started_with(grown, copied, name):
    out = copied(name)
    assert grown.resume(out=out) == grown.resume(out="whole")
    assert grown.recorded(out) == grown.recorded("whole") == ONE_SOURCE


def test_what_agrees_with_the_start_goes_on(grown, copied):
    """A split's name alone does not bring in the other dataset."""
    out = copied("started")
    grown.resume(out=out, teachers=("coordinates",), split="train")
    assert grown.recorded(out) == ONE_SOURCE


@pytest.mark.parametrize("name", ["started", "stopped"])
@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        ({"teachers": ("doubled",)}, "teacher was coordinates and is doubled"),
        ({"teachers": ("coordinates", "doubled")}, "teacher was coordinates and is coordinates, doubled"),
        ({"overrides": ("objective.teachers={doubled: 2}",)}, "teacher was coordinates and is doubled"),
        ({"split": "val"}, "split was train and is val"),
    ],
)
def test_what_contradicts_the_start_is_refused(grown, asked, difference, name):
    config = grown.folder / name / "config.yaml"
    before = config.read_bytes()
    with pytest.raises(StudentError) as caught:
        grown.resume(out=name, **asked)
    remedy = "Resume the run with the options that it was started with, or choose another --out"
    assert str(caught.value) == f"{config}: the run in --out was started with other options: {difference}. {remedy}"
    assert config.read_bytes() == before


def test_another_number_of_stores_is_refused(grown, tmp_path):
    copy = shutil.copytree(grown.folder / "s.zarr", tmp_path / "copy.zarr")
    message = r"config\.yaml: the run in --out was started with other options: number of stores was 1 and is 2"
    with pytest.raises(StudentError, match=message):
        grown.resume("s.zarr", str(copy), out="started")


def test_a_first_run_takes_every_dataset_of_its_split(grown, tmp_path):
    store, out = str(shutil.copytree(grown.folder / "s.zarr", tmp_path / "s.zarr")), str(tmp_path / "run")
    with pytest.raises(StoreError, match=r"000005.parquet: 1 of 4 blocks have no targets .*; the first is block 5"):
        grown.start(store, out=out, teachers=("coordinates",), split="train")
    grown.extract(store, dataset="other")
    grown.start(store, out=out, teachers=("coordinates",), split="train")
    assert grown.recorded(out)["sources"] == [[("nuscenes", "train"), ("other", "train")]]


def test_several_splits_of_a_store_are_learnt_together(place):
    place.extract()
    place.extract(split="val")
    place.start(split="val, train")
    sources = [("nuscenes", "train"), ("nuscenes", "val")]
    assert place.recorded() == {"teachers": ["coordinates"], "sources": [sources]}
    place.start(resume=True, split="train,val")
    with pytest.raises(StudentError, match="split was train, val and is train"):
        place.resume(split="train")


def test_without_resume_a_run_begins_anew(grown, copied):
    """Where it has no checkpoint, its config.yaml does not bind the next run."""
    out = copied("started")
    grown.start(out=out, teachers=("coordinates",), split="val")
    assert grown.recorded(out)["sources"] == [[("nuscenes", "val")]]


def test_an_incomplete_store_is_refused(extract_tiny, tmp_path):
    store = extract_tiny(frames_per_block=1)
    (store.path / "index/coordinates/000001.parquet").unlink()
    with pytest.raises(
        StoreError,
        match=r"coordinates/000001.parquet: 1 of 3 blocks have no targets .*; the first is block 1",
    ):
        distill(DistillConfig(caches=(store.path,), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_the_store_lacks_is_said_with_those_it_has(extract_tiny, tmp_path):
    store, message = extract_tiny(), r"s\.zarr: the store has no targets of teacher 'foo' \(it has: coordinates\)\. Run"
    with pytest.raises(StoreError, match=message):
        distill(DistillConfig(caches=(store.path,), out=tmp_path / "run", teachers=("foo",)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", "no split 'val', and the store has the splits: train. Pass --split"),
        (None, "no --split is given, and the store has"),
    ],
)
def test_a_split_that_is_not_clear_is_said(extract_tiny, tiny_dataset, tmp_path, split, message):
    store = extract_tiny()
    if split is None:
        tiny_dataset.split = "test"
        store = extract_tiny()
    with pytest.raises(StoreError) as caught:
        distill(DistillConfig(caches=(store.path,), out=tmp_path / "run", split=split, device="cpu"))
    assert message in str(caught.value)


def test_two_teachers_want_a_choice(extract_tiny, tmp_path):
    store = extract_tiny("coordinates", "doubled")
    with pytest.raises(StoreError, match="no --teacher is given"):
        distill(DistillConfig(caches=(store.path,), out=tmp_path / "run"))


def test_each_of_several_stores_keeps_its_sources(place):
    """Even where a store gets what is learnt from another one."""
    place.extract("a.zarr")
    place.extract("b.zarr", dataset="other", split="all")
    caches = ("a.zarr", "b.zarr")
    place.start(*caches)
    place.extract("a.zarr", dataset="other", split="all")
    place.extract("b.zarr", dataset="other", split="all", teacher="doubled")
    place.start(*caches, resume=True)
    expected = {"teachers": ["coordinates"], "sources": [[("nuscenes", "train")], [("other", "all")]]}
    assert place.recorded() == expected
    # A store that lacks what was learnt from it, as where two --cache are exchanged.
    message = r"b\.zarr: the run was started with split train of nuscenes, and the store has: all of other\. Pass each"
    with pytest.raises(StoreError, match=message):
        place.resume(*reversed(caches))


def test_teachers_keep_the_order_of_the_start(place):
    """The student's head has the targets of one teacher after those of the other."""
    place.extract()
    place.extract(teacher="doubled")
    place.start(teachers=("doubled", "coordinates"))
    place.start(teachers=("coordinates", "doubled"), resume=True)
    assert place.recorded()["teachers"] == ["doubled", "coordinates"]


def test_a_checkpoint_without_configuration_chooses_as_a_first_run(place):
    place.extract()
    place.stop()
    config = place.folder / "run/config.yaml"
    config.unlink()
    place.extract(teacher="doubled")
    with pytest.raises(StoreError, match="no --teacher is given"):
        place.resume()
    # The checkpoint refuses what differs; the next try is not bound to what was refused.
    with pytest.raises(
        StudentError,
        match=r"checkpoint\.pt: the run was made with other settings: teachers\.doubled was not set and is",
    ):
        place.resume(teachers=("doubled",))
    assert not config.exists()
    place.resume(teachers=("coordinates",))
    assert place.recorded() == ONE_SOURCE


def test_processes_that_do_not_share_the_configuration_are_said(grown, monkeypatch):
    """One of two nodes would choose anew."""
    monkeypatch.setattr(run, "num_processes", lambda: 2)
    monkeypatch.setattr(run, "summed", lambda values, device: [1.0])
    with pytest.raises(StudentError, match=r"config\.yaml: 1 of 2 processes see this file\. Put --out on shared"):
        grown.resume(out="started")
