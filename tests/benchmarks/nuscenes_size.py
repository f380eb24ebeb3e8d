"""What the bare `scalr extract --teacher dinov2_vitl14` would write for the training set of nuScenes, by --dry-run.

    python tests/benchmarks/nuscenes_size.py ../shared/data/nuscenes

The folder has one real keyframe, whose tables are repeated for 28,130 samples of the 700 training scenes. The ViT-L/14
has random weights, on whose values sizes hardly depend.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SAMPLES = 28_130
REPEATED = ("scene", "sample", "sample_data", "ego_pose", "lidarseg")
DRY_RUN = ("extract", "--teacher", "dinov2_vitl14", "--weights", "random", "--dry-run", "--root")


def repeated(records: dict[str, list[dict]], scene_names: list[str]) -> Iterator[tuple[str, dict]]:
    """Table and record, for all samples."""
    per_scene = [SAMPLES // len(scene_names) + (n < SAMPLES % len(scene_names)) for n in range(len(scene_names))]
    first = 0
    for scene_name, count in zip(scene_names, per_scene, strict=True):
        tokens = [f"{first + step:032d}" for step in range(count)]
        yield (
            "scene",
            records["scene"][0]
            | {
                "token": scene_name,
                "name": scene_name,
                "nbr_samples": count,
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
            },
        )
        for step, token in enumerate(tokens):
            around = {"prev": tokens[step - 1] if step else "", "next": tokens[step + 1] if step < count - 1 else ""}
            yield "sample", records["sample"][0] | around | {"token": token, "scene_token": scene_name}
            for number, (data, pose) in enumerate(zip(records["sample_data"], records["ego_pose"], strict=True)):
                own = f"{token}-{number}"
                yield "ego_pose", pose | {"token": own}
                yield "sample_data", data | {"token": own, "ego_pose_token": own, "sample_token": token}
                for labels in records["lidarseg"]:
                    if labels["sample_data_token"] == data["token"]:
                        yield "lidarseg", labels | {"token": own, "sample_data_token": own}
        first += count


def write_dataset(keyframe: Path, root: Path, scene_names: list[str]) -> None:
    tables = {path.stem: json.loads(path.read_text()) for path in (keyframe / "v1.0-mini").glob("*.json")}
    poses = {pose["token"]: pose for pose in tables["ego_pose"]}
    tables["ego_pose"] = [poses[data["ego_pose_token"]] for data in tables["sample_data"]]
    many: dict[str, list[dict]] = {name: [] for name in REPEATED}
    for name, record in repeated(tables, scene_names):
        many[name].append(record)
    tables |= many | {"sample_annotation": [], "instance": []}
    folder = root / "v1.0-trainval"
    folder.mkdir()
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    for name in ("samples", "maps", "lidarseg"):
        (root / name).symlink_to(keyframe / name)


def main(keyframe: Path) -> None:
    from nuscenes.utils import splits

    with tempfile.TemporaryDirectory() as folder:
        write_dataset(keyframe.resolve(), Path(folder), splits.train)
        environment = {"XDG_CACHE_HOME": f"{folder}/cache"}
        command = [sys.executable, "-c", "from scalr.cli import main; main()", *DRY_RUN, folder]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
        print(done.stdout or done.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
