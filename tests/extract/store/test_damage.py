"""Random accidents to a store: nobody reads other numbers, nothing sound is lost, and all of it can be mended."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.errors import ScalrError
from scalr.extract.store import open_store
from scalr.extract.verification import VerifyConfig, verify
from store_comparison import assert_same_store
from tiny import TinyDataset, extract_with, tiny_teachers

TEACHERS = ("coordinates", "doubled")
RECIPE = ("student.width=4", "student.depth=1", "training.epochs=1", "training.batch_size=2", "training.warmup_steps=1",
          "inputs.num_neighbours=2")  # fmt: skip
SCRATCH = ("tmp", "aside")


def extract_all(folder: Path, out: Path) -> Path:
    """Two splits of a tiny dataset, two teachers; int8 has scales to be damaged, too."""
    dataset = TinyDataset(folder)
    for split in ("train", "val"):
        dataset.split = split
        options = {"frames_per_block": 2, "batch_size": 4, "split": split, "dtype": "int8"}
        extract_with(dataset, tiny_teachers(), out, teachers=TEACHERS, **options)
    return out


def losses(store: Path, out: Path) -> list[float]:
    recipe = load_recipe("scalr_wi256", RECIPE)
    config = DistillConfig(caches=(store,), teachers=TEACHERS, split="train", out=out, recipe=recipe, device="cpu")
    return distill(config).losses


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    return extract_all(folder, folder / "s.zarr")


@pytest.fixture(scope="module")
def sound_losses(sound, tmp_path_factory) -> list[float]:
    return losses(sound, tmp_path_factory.mktemp("run") / "r")


def files_of(store: Path) -> list[Path]:
    files = [path for path in store.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path for path in files if path.relative_to(store).parts[0] not in SCRATCH)


def remove(file: Path, store: Path, rng: np.random.Generator) -> None:
    file.unlink()


def empty(file: Path, store: Path, rng: np.random.Generator) -> None:
    file.write_bytes(b"")


def cut(file: Path, store: Path, rng: np.random.Generator) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))])


def flip(file: Path, store: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def close(file: Path, store: Path, rng: np.random.Generator) -> None:
    """It cannot be opened, though it is there; modes do not stop root, and a link to itself stops everyone."""
    file.rename(store.parent / "closed")
    file.symlink_to(file)


def exchange(file: Path, store: Path, rng: np.random.Generator) -> None:
    """Replaced by the file of the same name of another block, or else of the same kind."""
    others = [other for other in files_of(store) if other.name == file.name and other != file]
    same = [other for other in others if other.parts[-3:] == file.parts[-3:]] or others
    if same:
        shutil.copy(same[rng.integers(len(same))], file)


def litter(file: Path, store: Path, rng: np.random.Generator) -> None:
    name = rng.choice(
        [".DS_Store", "Thumbs.db", "@eaDir", "._" + file.name, ".nfs0001", file.name + "~", file.name + ".bak"]
    )
    if name == "@eaDir":
        (file.parent / name).mkdir()
        name = f"{name}/x"
    (file.parent / name).write_bytes(b"x")


def remove_folder(file: Path, store: Path, rng: np.random.Generator) -> None:
    above = [folder for folder in file.parents if store in folder.parents]
    if above:
        shutil.rmtree(above[rng.integers(len(above))])


DAMAGES: tuple[Callable, ...] = (remove, empty, cut, flip, close, exchange, litter, remove_folder)


def contents(files: list[Path]) -> set[str]:
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def open_again(store: Path) -> None:
    """What could not be opened can be."""
    for path in store.rglob("*"):
        if path.is_symlink():
            path.unlink()
            (store.parent / "closed").rename(path)


SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 5 else []) for seed in range(200)]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_accident_is_never_other_numbers_and_never_costs_what_is_sound(seed, sound, sound_losses, tmp_path):
    rng, store = np.random.default_rng(seed), shutil.copytree(sound, tmp_path / "s.zarr")
    damage, files = DAMAGES[seed % len(DAMAGES)], files_of(store)
    file = files[rng.integers(len(files))]
    said = f"{damage.__name__} {file.relative_to(store)}"
    damage(file, store, rng)
    stays = contents([path for path in files if path.exists() and is_as_in(sound, path, store)])
    error = None
    try:
        assert losses(store, tmp_path / "run") == sound_losses, said
    except ScalrError as problem:
        error = str(problem)
    assert error is None or any(part in error for part in file.relative_to(store).parts), f"{said}: {error}"
    report = repaired(store)
    assert (damage is close) == ("cannot be read now" in report), said
    open_again(store)
    assert stays <= contents([path for path in store.rglob("*") if path.is_file()]), f"{said}: something sound is gone"
    extract_all(tmp_path, store)
    assert_same_store(open_store(store), open_store(sound))
    assert verify(VerifyConfig(store=store)).whole, said


def is_as_in(sound: Path, path: Path, store: Path) -> bool:
    return path.read_bytes() == (sound / path.relative_to(store)).read_bytes()


def repaired(store: Path) -> str:
    """What `verify --repair` says; a store without its top file is only known to extract."""
    try:
        return verify(VerifyConfig(store=store, repair=True)).as_text()
    except ScalrError as error:
        return str(error)
