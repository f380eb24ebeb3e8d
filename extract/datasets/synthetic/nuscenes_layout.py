"""Write simulated scenes as a nuScenes dataset: the v1.0 tables, lidarseg, scans, images.

The layout is that of https://www.nuscenes.org/nuscenes#data-format; the devkit opens it like the real one. Only
keyframes are written, no sweeps in between.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image as PilImage
from scipy.spatial.transform import Rotation

from .rigs import NUSCENES_RIG
from .sensors import Image, Scene, Sweep
from .writing import save_jpeg, scene_names, with_images, write_scenes

VERSION = "v1.0-trainval"
BOX_MARGIN_M = 0.05  # annotators leave a margin, which also covers the noise of the ranges
TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
    *("sample_annotation", "sample_data", "scene", "sensor", "visibility", "lidarseg"),
)
CATEGORIES = (  # in the order of their lidarseg ids
    *("noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker"),
    *("human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller"),
    *("human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris"),
    *("movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack"),
    *("vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction"),
    *("vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer"),
    *("vehicle.truck", "flat.driveable_surface", "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade"),
    *("static.other", "static.vegetation", "vehicle.ego"),
)
ANNOTATED = tuple(
    i for i, name in enumerate(CATEGORIES) if name.split(".")[0] in ("human", "vehicle", "movable_object")
)
ATTRIBUTES = (
    *("cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.standing"),
    *("pedestrian.sitting_lying_down", "vehicle.moving", "vehicle.parked", "vehicle.stopped"),
)
VISIBILITY = ((0.4, "v0-40"), (0.6, "v40-60"), (0.8, "v60-80"), (1.01, "v80-100"))  # (upper fraction, level)


def write_nuscenes(
    root: str | Path,
    *,
    train_scenes: int = 4,
    val_scenes: int = 2,
    keyframes: int = 10,
    image_shape: tuple[int, int] | None = None,
    seed: int = 0,
) -> None:
    """Write a simulated dataset in the native nuScenes layout, version `v1.0-trainval`.

    The scenes have the first names of the official train and val splits, and a scene depends only on its name and the
    seed: more scenes or more keyframes do not change the others. The same arguments give the
    same bytes. `root` is written atomically: it never holds half a dataset.

    Args:
        root: folder to write; it must not exist, or must be empty.
        train_scenes: number of scenes of train, 1 or more.
        val_scenes: number of scenes of val, 0 or more.
        keyframes: keyframes per scene, 0.5 s apart, 1 to 40.
        image_shape: (H, W) of the images [px]; None for the rig's size.
        seed: random seed, 0 or more.

    Raises:
        DatasetError: an argument out of range, a `root` that is in use, or a folder that cannot be written.
    """
    train, val = scene_names(train_scenes, val_scenes)
    rig = with_images(NUSCENES_RIG, image_shape)
    write_scenes(root, _Writer, rig, [*train, *val], keyframes, seed)


class _Writer:
    """Writes scans and images one by one, and collects the tables."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[str, list[dict]] = {table: [] for table in TABLES}
        sensors = [NUSCENES_RIG.lidar.channel, *(camera.channel for camera in NUSCENES_RIG.cameras)]
        for path in (VERSION, "maps", f"lidarseg/{VERSION}", *(f"samples/{channel}" for channel in sensors)):
            (folder / path).mkdir(parents=True)
        self._write_constants(sensors)

    def write_scene(self, scene: Scene, keyframes: int, done: Callable[[], object]) -> None:
        """Simulate and write all keyframes of a scene."""
        self._describe_scene(scene, keyframes)
        sightings: dict[int, list[dict]] = defaultdict(list)
        for keyframe in range(keyframes):
            sweep = scene.sweep(keyframe)
            images = {camera.channel: scene.render(camera.channel, keyframe) for camera in scene.rig.cameras}
            self._write_sweep(scene, keyframe, keyframes, sweep)
            for channel, image in images.items():
                self._write_image(scene, keyframe, keyframes, channel, image)
            for instance, annotation in _annotations(scene, keyframe, sweep, images):
                sightings[instance].append(annotation)
            done()
        self._add_instances(scene, sightings)

    def finish(self) -> None:
        for table, records in self._tables.items():
            text = json.dumps(records, indent=0)
            (self._folder / VERSION / f"{table}.json").write_text(text, encoding="utf-8")

    # --- tables --------------------------------------------------------------------------------------------------

    def _add(self, table: str, token: str, **fields: object) -> None:
        self._tables[table].append({"token": token, **fields})

    def _write_constants(self, sensors: list[str]) -> None:
        """The tables that do not depend on the scenes."""
        for index, name in enumerate(CATEGORIES):
            self._add("category", _token("category", name), name=name, description="", index=index)
        for name in ATTRIBUTES:
            self._add("attribute", _token("attribute", name), name=name, description="")
        for number, (_, level) in enumerate(VISIBILITY, start=1):
            low, high = level[1:].split("-")
            description = f"visibility of whole object is between {low} and {high}%"
            self._add("visibility", str(number), level=level, description=description)
        for channel in sensors:
            modality = "lidar" if channel.startswith("LIDAR") else "camera"
            self._add("sensor", _token("sensor", channel), channel=channel, modality=modality)

    def _describe_scene(self, scene: Scene, keyframes: int) -> None:
        log = _token(scene, "log")
        day = datetime.fromtimestamp(scene.start_us * 1e-6, UTC).strftime("%Y-%m-%d")
        fields = {"vehicle": "synthetic", "date_captured": day, "location": "boston-seaport"}
        self._add("log", log, logfile=_logfile(scene), **fields)
        map_token = _token(scene, "map")
        map_file = f"maps/{map_token}.png"
        PilImage.new("L", (1, 1)).save(self._folder / map_file)
        self._add("map", map_token, log_tokens=[log], category="semantic_prior", filename=map_file)
        samples = [_token(scene, "sample", keyframe) for keyframe in range(keyframes)]
        ends = {"first_sample_token": samples[0], "last_sample_token": samples[-1]}
        description = "Simulated street"
        scene_token = _token(scene, "scene")
        self._add(
            *("scene", scene_token),
            log_token=log,
            nbr_samples=keyframes,
            **ends,
            name=scene.name,
            description=description,
        )
        for keyframe, (token, neighbours) in enumerate(zip(samples, _links(samples), strict=True)):
            self._add("sample", token, timestamp=scene.time_us(keyframe), **neighbours, scene_token=scene_token)
        lidar = scene.rig.lidar
        self._calibrate(scene, lidar.channel, lidar.ego_from_lidar, [])
        for camera in scene.rig.cameras:
            self._calibrate(scene, camera.channel, camera.ego_from_cam, camera.intrinsics.tolist())

    def _calibrate(self, scene: Scene, channel: str, ego_from_sensor: np.ndarray, intrinsics: list) -> None:
        self._add(
            *("calibrated_sensor", _token(scene, "calibrated_sensor", channel)),
            sensor_token=_token("sensor", channel),
            **_pose(ego_from_sensor),
            camera_intrinsic=intrinsics,
        )

    def _add_instances(self, scene: Scene, sightings: dict[int, list[dict]]) -> None:
        """Chain the annotations of each object through time."""
        for instance, records in sorted(sightings.items()):
            token, tokens = _token(scene, "instance", instance), [record["token"] for record in records]
            category = CATEGORIES[scene.world.category[instance - 1]]
            ends = {"first_annotation_token": tokens[0], "last_annotation_token": tokens[-1]}
            category_token = _token("category", category)
            self._add(*("instance", token), category_token=category_token, nbr_annotations=len(records), **ends)
            for record, neighbours in zip(records, _links(tokens), strict=True):
                self._tables["sample_annotation"].append({**record, "instance_token": token, **neighbours})

    # --- files ---------------------------------------------------------------------------------------------------

    def _write_sweep(self, scene: Scene, keyframe: int, keyframes: int, sweep: Sweep) -> None:
        channel = scene.rig.lidar.channel
        token, file = self._add_data(scene, keyframe, keyframes, channel, "pcd", "pcd.bin", (0, 0))
        np.column_stack([sweep.points, sweep.ring.astype(np.float32)]).tofile(self._folder / file)
        labels = f"lidarseg/{VERSION}/{token}_lidarseg.bin"
        sweep.category.tofile(self._folder / labels)
        self._add("lidarseg", token, sample_data_token=token, filename=labels)

    def _write_image(self, scene: Scene, keyframe: int, keyframes: int, channel: str, image: Image) -> None:
        _, file = self._add_data(scene, keyframe, keyframes, channel, "jpg", "jpg", image.depth.shape)
        save_jpeg(image.rgb, self._folder / file)

    def _add_data(
        self, scene: Scene, keyframe: int, keyframes: int, channel: str, kind: str, ending: str, shape: tuple[int, int]
    ) -> tuple[str, str]:
        """Add the records of one scan or image; return its token and the file to write."""
        timestamp = scene.time_us(keyframe, channel)
        tokens = [_token(scene, "sample_data", channel, number) for number in range(keyframes)]
        token, file = tokens[keyframe], f"samples/{channel}/{_logfile(scene)}__{channel}__{timestamp}.{ending}"
        global_from_ego = scene.global_from_world @ scene.world_from_ego(timestamp)
        self._add("ego_pose", token, timestamp=timestamp, **_pose(global_from_ego))
        self._add(
            *("sample_data", token),
            sample_token=_token(scene, "sample", keyframe),
            ego_pose_token=token,
            calibrated_sensor_token=_token(scene, "calibrated_sensor", channel),
            timestamp=timestamp,
            fileformat=kind,
            is_key_frame=True,
            height=shape[0],
            width=shape[1],
            filename=file,
            **_links(tokens)[keyframe],
        )
        return token, file


def _annotations(scene: Scene, keyframe: int, sweep: Sweep, images: dict[str, Image]) -> list[tuple[int, dict]]:
    """Return (instance, record without its links) for each annotated object that the sweep hits.

    As everywhere in nuScenes, boxes are those at the time of the sweep. `num_lidar_pts` counts the object's points.
    """
    center, size, heading = scene.boxes(scene.time_us(keyframe), BOX_MARGIN_M)
    hits = np.bincount(sweep.instance, minlength=len(center) + 1)
    visible = _visible_share(scene, keyframe, images)
    turn = np.arctan2(scene.global_from_world[1, 0], scene.global_from_world[0, 0])
    records = []
    for number in np.flatnonzero(np.isin(scene.world.category, ANNOTATED) & (hits[1:] > 0)).tolist():
        length, width, height = size[number].tolist()
        yaw = (heading[number] + turn) / 2
        attribute = scene.world.objects[number].body.attribute
        level = next(str(i) for i, (below, _) in enumerate(VISIBILITY, start=1) if visible[number] < below)
        record = {
            "token": _token(scene, "annotation", number + 1, keyframe),
            "sample_token": _token(scene, "sample", keyframe),
            "visibility_token": level,
            "attribute_tokens": [_token("attribute", attribute)] if attribute else [],
            "translation": (scene.global_from_world[:3, :3] @ center[number] + scene.global_from_world[:3, 3]).tolist(),
            "size": [width, length, height],
            "rotation": [float(np.cos(yaw)), 0.0, 0.0, float(np.sin(yaw))],
            "num_lidar_pts": int(hits[number + 1]),
            "num_radar_pts": 0,
        }
        records.append((number + 1, record))
    return records


def _visible_share(scene: Scene, keyframe: int, images: dict[str, Image]) -> np.ndarray:
    """The visible fraction of each object, (O,): parts whose centre's pixel shows the object, of those in some image.

    The ray to the centre of a part meets the object, unless something else is in front.
    """
    seen, counted = np.zeros(len(scene.world.objects)), np.zeros(len(scene.world.objects))
    for channel, image in images.items():
        timestamp, camera = scene.time_us(keyframe, channel), scene.rig.camera(channel)
        world_from_cam = scene.world_from_ego(timestamp) @ camera.ego_from_cam
        points = (scene.part_centers(timestamp) - world_from_cam[:3, 3]) @ world_from_cam[:3, :3] @ camera.intrinsics.T
        depth = np.maximum(points[:, 2], 1e-6)
        column, row = np.floor(points[:, 0] / depth), np.floor(points[:, 1] / depth)
        height, width = image.depth.shape
        inside = (points[:, 2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        owner = scene.world.part_object[inside]
        shown = image.instance[row[inside].astype(int), column[inside].astype(int)]
        np.add.at(counted, owner, 1)
        np.add.at(seen, owner, shown == owner + 1)
    return seen / np.maximum(counted, 1)


def _token(*description: object) -> str:
    """A token that is equal in every run: the MD5 of its description, which for a scene is its name and the seed."""
    parts = [f"{part.name} {part.seed}" if isinstance(part, Scene) else str(part) for part in description]
    return hashlib.md5("/".join(parts).encode(), usedforsecurity=False).hexdigest()


def _logfile(scene: Scene) -> str:
    return f"synthetic-{scene.name.removeprefix('scene-')}-{scene.start_us // 1_000_000}"


def _links(tokens: list[str]) -> list[dict[str, str]]:
    """The `prev` and `next` fields of a chain of records."""
    padded = ["", *tokens, ""]
    return [{"prev": before, "next": after} for before, after in zip(padded, padded[2:], strict=False)]


def _pose(matrix: np.ndarray) -> dict[str, list[float]]:
    """The `translation` and `rotation` (w, x, y, z) fields of a rigid transform (4, 4)."""
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist()
    return {"translation": matrix[:3, 3].tolist(), "rotation": [w, x, y, z]}
