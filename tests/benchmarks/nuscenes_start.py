"""How long a split of nuScenes takes to open, and how much memory: the first time, afterwards, and by the devkit.

    python tests/benchmarks/nuscenes_start.py

Tables of the size of v1.0-trainval are made up for it: 34,149 samples, 2.6 million records of sensor data, as many
poses, 1.2 million boxes. Each way has a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RANDOM = np.random.default_rng(0)
SCENES, SAMPLES, SWEEPS, BOXES = 850, 34_149, 2_631_083, 1_166_187
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
OPEN = """
import resource, sys, time
start = time.perf_counter()
from pathlib import Path
{code}
seconds = time.perf_counter() - start
print(f"{{seconds:.1f}} s, {{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}} GB")
"""
OURS = """from scalr.extract.datasets import open_dataset
open_dataset('nuscenes', Path({root!r}), 'train').frames[-1]"""
DEVKIT = "from nuscenes.nuscenes import NuScenes; NuScenes('v1.0-trainval', {root!r}, verbose=False)"


def token(kind: str, number: int) -> str:
    return f"{kind}{number:026d}"


def pose() -> dict:
    return {"rotation": RANDOM.random(4).tolist(), "translation": [*(2000 * RANDOM.random(2)).tolist(), 0.0]}


class Table:
    """A table written record by record."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file, self.separator = (folder / f"{name}.json").open("w"), "[\n"

    def add(self, **record: object) -> None:
        self.file.write(self.separator + json.dumps(record, indent=0))
        self.separator = ",\n"

    def close(self) -> None:
        self.file.write("\n]")
        self.file.close()


def write_tables(root: Path, scene_names: list[str]) -> None:
    folder = root / "v1.0-trainval"
    folder.mkdir()
    names = ("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample",
             "sample_annotation", "sample_data", "scene", "sensor", "visibility", "lidarseg")  # fmt: skip
    table = {name: Table(folder, name) for name in names}
    channels = ("LIDAR_TOP", *CAMERAS, *(f"RADAR_{number}" for number in range(5)))
    for number, channel in enumerate(channels):
        table["sensor"].add(token=token("s", number), channel=channel, modality=channel.split("_")[0].lower()[:6])
        intrinsics = [[1266.4, 0.0, 816.2], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]] if "CAM" in channel else []
        table["calibrated_sensor"].add(
            token=token("c", number), sensor_token=token("s", number), camera_intrinsic=intrinsics, **pose()
        )
    for name in ("attribute", "visibility"):
        table[name].add(token=token("v", 0), name="", description="", level="")
    table["log"].add(token=token("l", 0), location="boston-seaport", logfile="", vehicle="", date_captured="")
    table["map"].add(token=token("m", 0), log_tokens=[token("l", 0)], category="", filename="maps/m.png")
    table["category"].add(token=token("k", 0), name="vehicle.car", description="", index=17)
    table["instance"].add(token=token("i", 0), category_token=token("k", 0))
    per_scene = [SAMPLES // SCENES + (number < SAMPLES % SCENES) for number in range(SCENES)]
    sample = 0
    for number, count in enumerate(per_scene):
        table["scene"].add(token=token("z", number), name=scene_names[number], description="", nbr_samples=count,
                           log_token=token("l", 0), first_sample_token=token("a", sample))  # fmt: skip
        for step in range(count):
            following = token("a", sample + 1) if step < count - 1 else ""
            table["sample"].add(token=token("a", sample), timestamp=1532402927647951, scene_token=token("z", number),
                                next=following, prev="")  # fmt: skip
            sample += 1
    for number in range(SWEEPS):
        of_sample, channel = divmod(number, 77)
        key_frame = channel < len(channels)
        table["ego_pose"].add(token=token("d", number), timestamp=1532402927647951, **pose())
        table["sample_data"].add(
            token=token("d", number), ego_pose_token=token("d", number),
            sample_token=token("a", min(of_sample, SAMPLES - 1)),
            calibrated_sensor_token=token("c", channel % len(channels)), timestamp=1532402927647951, fileformat="jpg",
            is_key_frame=key_frame, height=900, width=1600, prev="", next="",
            filename=f"samples/CAM_BACK_RIGHT/n015-2018-07-24-11-22-45+0800__CAM_BACK_RIGHT__{number:016d}.jpg",
        )  # fmt: skip
        if key_frame and channel == 0 and of_sample < SAMPLES:
            table["lidarseg"].add(
                token=token("d", number), sample_data_token=token("d", number), filename="lidarseg/x.bin"
            )
    for number in range(BOXES):
        table["sample_annotation"].add(
            token=token("b", number), sample_token=token("a", number % SAMPLES), instance_token=token("i", 0),
            visibility_token="", attribute_tokens=[], size=[0.621, 0.669, 1.642], prev="", next="", num_lidar_pts=5,
            num_radar_pts=0, **pose(),
        )  # fmt: skip
    for each in table.values():
        each.close()
    (root / "lidarseg/v1.0-trainval").mkdir(parents=True)
    for number in range(SAMPLES):  # the devkit counts the files
        (root / f"lidarseg/v1.0-trainval/{number}_lidarseg.bin").touch()
    (root / "maps").mkdir()
    (root / "maps/m.png").write_bytes(b"")


def main() -> None:
    from nuscenes.utils import splits

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tables(root, [*splits.train, *splits.val])
        environment = os.environ | {"XDG_CACHE_HOME": str(root / "cache")}
        for name, code in {"first time": OURS, "afterwards": OURS, "devkit": DEVKIT}.items():
            script = OPEN.format(code=code.format(root=str(root)))
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
            print(f"{name:<12} {done.stdout.strip() or done.stderr}", flush=True)
        (kept,) = (root / "cache/scalr").iterdir()
        print(f"kept table: {kept.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
