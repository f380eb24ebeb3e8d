"""Files as accidents leave them: what copying, converting and editing does to data that was sound.

A mutation takes a file's content and a generator of random numbers, and gives another content: None for a file that is
gone, FOLDER where a folder has its name. Not among them are changes that leave another sound file, as one more point, a
camera a little to the left, or other bytes in a JPEG, which has no checksum: nobody can tell those.
"""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import load, save

Random = np.random.Generator
Mutation = Callable[[bytes, Random], bytes | None]
Mutations = dict[str, Mutation]

FOLDER = b"a folder"
NOISE_BYTES = 4096
PAGE = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def chosen(random: Random, values: Any) -> Any:
    """One of a sequence; numpy's own choice would make an array of it."""
    return values[int(random.integers(len(values)))]


# --- any file: transfers, full disks, tools that do not ask -----------------------------------------------------------


def cut(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def with_noise(content: bytes, random: Random) -> bytes:
    start = int(random.integers(len(content)))
    return content[:start] + random.bytes(min(NOISE_BYTES, len(content) - start)) + content[start + NOISE_BYTES :]


def with_tail_of_zeros(content: bytes, random: Random) -> bytes:
    """As file systems leave what was not flushed before the power went."""
    return cut(content, random).ljust(len(content), b"\0")


WHOLE_FILE: Mutations = {
    "gone": lambda content, random: None,
    "a folder": lambda content, random: FOLDER,
    "empty": lambda content, random: b"",
    "cut": cut,
    "noise": with_noise,
    "tail of zeros": with_tail_of_zeros,
    "all zeros": lambda content, random: bytes(len(content)),
    "line ends of Windows": lambda content, random: content.replace(b"\n", b"\r\n"),
    "a page that says 404": lambda content, random: PAGE,
    "Git LFS pointer": lambda content, random: POINTER,
}


def without(mutations: Mutations, *names: str) -> Mutations:
    return {name: mutation for name, mutation in mutations.items() if name not in names}


# --- JSON and YAML ----------------------------------------------------------------------------------------------------


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    for key in range(len(tree)) if isinstance(tree, list) else list(tree) if isinstance(tree, dict) else ():
        yield tree, key
        yield from places(tree[key])


def unsuitable(value: Any, random: Random) -> Any:
    """What a value of this type never is."""
    no_number = [None, math.nan, math.inf, -math.inf, 1e300, "abc", "", [], {}, [1.0]]
    if isinstance(value, bool):
        return chosen(random, [None, "no", [], 7])
    if isinstance(value, int | float):
        return chosen(random, no_number)
    if isinstance(value, str):
        return chosen(random, [None, 5, math.nan, "", [], {}, "a\0b", "../" * 9 + "etc/hosts", "x" * 300])
    if isinstance(value, list):
        return chosen(random, [None, 5, "abc", [], {}, [value], value[:-1], [*value, *value]])
    return chosen(random, [None, 5, "abc", [], {}])


def with_an_unsuitable_value(tree: Any, random: Random) -> Any:
    container, key = chosen(random, list(places(tree)))
    container[key] = unsuitable(container[key], random)
    return tree


def without_a_key(tree: Any, random: Random) -> Any:
    if keys := _keys(tree):
        container, key = chosen(random, keys)
        del container[key]
    return tree


def with_a_misspelt_key(tree: Any, random: Random) -> Any:
    if keys := _keys(tree):
        container, key = chosen(random, keys)
        container[f"{key}s"] = container.pop(key)
    return tree


def with_a_number_as_text(tree: Any, random: Random) -> Any:
    """As of tables that went through a spreadsheet."""
    numbers = [(each, key) for each, key in places(tree) if type(each[key]) in (int, float)]
    if numbers:
        container, key = chosen(random, numbers)
        container[key] = str(container[key])
    return tree


def with_an_item_twice(tree: Any, random: Random) -> Any:
    if lists := _lists(tree):
        items = chosen(random, lists)
        items.append(copy.deepcopy(chosen(random, items)))
    return tree


def without_an_item(tree: Any, random: Random) -> Any:
    if lists := _lists(tree):
        items = chosen(random, lists)
        del items[int(random.integers(len(items)))]
    return tree


def wrapped(tree: Any, random: Random) -> Any:
    return chosen(random, [[tree], {"data": tree}, json.dumps(tree), None, 5, [], {}])


def _keys(tree: Any) -> list[tuple[dict, str]]:
    return [(each, key) for each, key in places(tree) if isinstance(each, dict)]


def _lists(tree: Any) -> list[list]:
    return [each[key] for each, key in places([tree]) if isinstance(each[key], list) and each[key]]


TREES = {
    "unsuitable value": with_an_unsuitable_value,
    "no such key": without_a_key,
    "misspelt key": with_a_misspelt_key,
    "number as text": with_a_number_as_text,
    "item twice": with_an_item_twice,
    "item missing": without_an_item,
    "wrapped": wrapped,
}


def _of_json(change: Callable) -> Mutation:
    return lambda content, random: json.dumps(change(json.loads(content), random)).encode()


def _of_yaml(change: Callable) -> Mutation:
    return lambda content, random: yaml.safe_dump(change(yaml.safe_load(content), random)).encode()


TEXT: Mutations = {
    **WHOLE_FILE,
    "byte order mark": lambda content, random: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content, random: content.decode().encode("utf-16"),
    "more text after it": lambda content, random: content + b"\n}",
}
JSON: Mutations = {**TEXT, **{name: _of_json(change) for name, change in TREES.items()}}
YAML: Mutations = {**TEXT, **{name: _of_yaml(change) for name, change in TREES.items()}}


# --- calib.txt --------------------------------------------------------------------------------------------------------


def _of_rows(change: Callable[[dict[str, list[str]], Random], dict[str, list[str]]]) -> Mutation:
    def mutated(content: bytes, random: Random) -> bytes:
        rows = dict(line.split(":", 1) for line in content.decode().splitlines() if ":" in line)
        rows = change({name: values.split() for name, values in rows.items()}, random)
        return "".join(f"{name}: {' '.join(values)}\n" for name, values in rows.items()).encode()

    return mutated


def _matrix_row(values: list[str]) -> np.ndarray:
    return np.array(values, np.float64).reshape(3, 4)


def _texts(matrix: np.ndarray) -> list[str]:
    return [f"{value:.12e}" for value in matrix.ravel()]


def _with_a_word(rows: dict, random: Random) -> dict:
    values = rows[chosen(random, ("P2", "Tr"))]
    words = ("nan", "inf", "abc", "1,5", "1e400", "--1", "", "1 2", "None", "1e30")
    values[int(random.integers(12))] = chosen(random, words)
    return rows


def _with_a_row_renamed(rows: dict, random: Random) -> dict:
    name = chosen(random, ("P2", "Tr"))
    new = chosen(random, (name.lower(), f"{name}x", "Tr_velo_to_cam" if name == "Tr" else "P_rect_02", f" {name}"))
    return {new if each == name else each: values for each, values in rows.items()}


def _with_identity(rows: dict, random: Random) -> dict:
    """As converters write it that have no calibration."""
    return rows | {chosen(random, ("P2", "Tr")): _texts(np.eye(4)[:3])}


def _with_zeros(rows: dict, random: Random) -> dict:
    return rows | {chosen(random, ("P2", "Tr")): _texts(np.zeros((3, 4)))}


def _transposed(rows: dict, random: Random) -> dict:
    whole = np.vstack([_matrix_row(rows["Tr"]), [0, 0, 0, 1]])
    return rows | {"Tr": _texts(np.hstack([whole[:3, :3].T, whole[:3, 3:]]))}


def _inverted(rows: dict, random: Random) -> dict:
    whole = np.vstack([_matrix_row(rows["Tr"]), [0, 0, 0, 1]])
    return rows | {"Tr": _texts(np.linalg.inv(whole)[:3])}


def _mirrored(rows: dict, random: Random) -> dict:
    whole = _matrix_row(rows["Tr"])
    whole[int(random.integers(3))] *= -1
    return rows | {"Tr": _texts(whole)}


def _without_a_number(rows: dict, random: Random) -> dict:
    rows[chosen(random, ("P2", "Tr"))].pop(int(random.integers(12)))
    return rows


def _without_a_row(rows: dict, random: Random) -> dict:
    del rows[chosen(random, ("P2", "Tr"))]
    return rows


def _upside_down(rows: dict, random: Random) -> dict:
    return dict(reversed(rows.items()))


CALIBRATION: Mutations = {
    **without(TEXT, "more text after it", "noise", "tail of zeros", "cut"),  # see below
    **{
        f"calibration: {name}": _of_rows(change)
        for name, change in {
            "no number": _with_a_word,
            "row renamed": _with_a_row_renamed,
            "row missing": _without_a_row,
            "number missing": _without_a_number,
            "identity": _with_identity,
            "zeros": _with_zeros,
            "rotation transposed": _transposed,
            "inverted": _inverted,
            "mirrored": _mirrored,
            "rows in another order": _upside_down,
        }.items()
    },
    # Anywhere but in the last number, whose first digits are a number too.
    "cut": lambda content, random: content[: int(random.integers(content.rindex(b" ")))],
}


# --- scans: float32 without a header ----------------------------------------------------------------------------------


def with_many_zeros(content: bytes, random: Random) -> bytes:
    """The last fifth of a scan, or more; a few points at the origin may be rays without a return."""
    return content[: int(random.integers(len(content) * 4 // 5))].ljust(len(content), b"\0")


SCAN: Mutations = {**without(WHOLE_FILE, "line ends of Windows"), "tail of zeros": with_many_zeros}


def conversions(columns: int) -> Mutations:
    """What a converter may do to all scans, whose points have so many values."""

    def of_points(change: Callable[[np.ndarray], np.ndarray]) -> Mutation:
        return lambda content, random: change(np.frombuffer(content, np.float32).reshape(-1, columns)).tobytes()

    def scaled(of_coordinates: float, of_intensity: float) -> Mutation:
        factors = np.float32([of_coordinates] * 3 + [of_intensity] + [1] * (columns - 4))
        return of_points(lambda points: points * factors)

    return {
        "float64": of_points(lambda points: points.astype(np.float64)),
        "float16": of_points(lambda points: points.astype(np.float16)),
        "big endian": of_points(lambda points: points.byteswap()),
        "a column more": of_points(lambda points: np.hstack([points, points[:, :1]])),
        "a column less": of_points(lambda points: points[:, :-1].copy()),
        "millimetres": scaled(1000, 1),
        "intensity constant": scaled(1, 0),
        "intensity of another scale": scaled(1, 1 / 255 if columns == 5 else 255),
        "no coordinates": scaled(0, 1),
        "saved by numpy": lambda content, random: _npy(np.frombuffer(content, np.float32).reshape(-1, columns)),
    }


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# --- images ----------------------------------------------------------------------------------------------------------


def _of_image(change: Callable[[Image.Image, Random], Image.Image], **options: Any) -> Mutation:
    def mutated(content: bytes, random: Random) -> bytes:
        file = io.BytesIO()
        image = change(Image.open(io.BytesIO(content)).convert("RGB"), random)
        image.save(file, **{"format": "PNG", **options})
        return file.getvalue()

    return mutated


def _resized(image: Image.Image, random: Random) -> Image.Image:
    factor = chosen(random, (0.5, 2))
    return image.resize((round(image.width * factor), round(image.height * factor)))


IMAGE: Mutations = {
    **without(WHOLE_FILE, "noise", "tail of zeros", "line ends of Windows"),  # a JPEG hides those
    "as PNG": _of_image(lambda image, random: image),
    "with an opaque alpha channel": _of_image(lambda image, random: image.convert("RGBA")),
    "another size": _of_image(_resized),
    "turned": _of_image(lambda image, random: image.transpose(Image.Transpose.ROTATE_90)),
    "all of one colour": _of_image(lambda image, random: Image.new("RGB", image.size, (124, 116, 104))),
}
PNG: Mutations = IMAGE | {name: WHOLE_FILE[name] for name in ("noise", "tail of zeros")}


# --- frame tables ----------------------------------------------------------------------------------------------------


def _of_table(change: Callable[[pa.Table, Random], pa.Table], **options: Any) -> Mutation:
    def mutated(content: bytes, random: Random) -> bytes:
        file = io.BytesIO()
        pq.write_table(change(pq.read_table(io.BytesIO(content)), random), file, **options)
        return file.getvalue()

    return mutated


def _of_cell(table: pa.Table, random: Random) -> pa.Table:
    """Of any column but scene, token and camera, where any other name is a name."""
    name = chosen(random, [each for each in table.column_names if each not in ("scene", "token", "camera")])
    column = table[name].to_pylist()
    row = int(random.integers(len(column)))
    kind = table.schema.field(name).type
    if pa.types.is_integer(kind):
        column[row] = chosen(random, [None, -1, 0, 2**31 - 1])
    elif pa.types.is_string(kind):
        column[row] = chosen(random, [None, "", "no such file", "a\0b", "../" * 9 + "etc/hosts", "/etc/hosts", "."])
    else:
        matrix = np.array(column[row])
        bad = [matrix[:-1], np.zeros_like(matrix), -matrix, matrix * np.nan, matrix * 1e300, matrix[::-1], []]
        column[row] = chosen(random, [None, *(np.array(each, float).tolist() for each in bad)])
    return _with_column(table, name, pa.array(column, kind))


def _with_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    number = table.column_names.index(name)
    return table.set_column(number, name, column)


def _without_a_column(table: pa.Table, random: Random) -> pa.Table:
    names = [each for each in table.column_names if each not in ("labels", "image_height", "image_width")]
    return table.drop_columns([chosen(random, names)])


def _with_a_column_renamed(table: pa.Table, random: Random) -> pa.Table:
    name = chosen(random, table.column_names)
    return table.rename_columns([f"{name}s" if each == name else each for each in table.column_names])


def _with_a_column_more(table: pa.Table, random: Random) -> pa.Table:
    name = chosen(random, ("__index_level_0__", "note", "index", ""))
    return table.append_column(name, pa.array(range(table.num_rows)))


def _of_another_type(table: pa.Table, random: Random) -> pa.Table:
    name = chosen(random, table.column_names)
    column, kind = table[name], table.schema.field(name).type
    if pa.types.is_integer(kind):
        types = [pa.int64(), pa.uint64(), pa.float64(), pa.string(), pa.decimal128(20, 0)]
        types += [pa.timestamp("us"), pa.timestamp("ns")] if name == "timestamp" else []
    elif pa.types.is_string(kind):
        types = [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]
    else:
        types = [pa.large_list(pa.float64()), pa.list_(pa.float32()), pa.list_(pa.string())]
        types += [pa.list_(pa.float64(), len(column[0]))]
    kind = chosen(random, types)
    if kind == pa.timestamp("ns"):
        column = column.cast(pa.timestamp("us"))
    if kind == pa.list_(pa.string()):
        column = pa.array([[str(value) for value in each] for each in column.to_pylist()])
    return _with_column(table, name, column.cast(kind))


def _as_rows_of_matrices(table: pa.Table, random: Random) -> pa.Table:
    name, columns = chosen(random, (("cam_from_lidar", 4), ("intrinsics", 3)))
    return _with_column(
        table, name, pa.array([np.reshape(each, (3, columns)).tolist() for each in table[name].to_pylist()])
    )


def _taken(rows: Callable[[int, Random], Any]) -> Callable[[pa.Table, Random], pa.Table]:
    return lambda table, random: table.take(pa.array(np.array(rows(table.num_rows, random), np.int64)))


def _one_twice(rows: int, random: Random) -> list[int]:
    number = int(random.integers(rows))
    return sorted([*range(rows), number])


FRAME_TABLE: Mutations = {
    **without(WHOLE_FILE, "line ends of Windows"),
    "rows of text": lambda content, random: "\n".join(
        map(str, pq.read_table(io.BytesIO(content)).to_pylist())
    ).encode(),
    "compressed otherwise": _of_table(lambda table, random: table, compression="zstd"),
    "cell": _of_table(_of_cell),
    "column missing": _of_table(_without_a_column),
    "column renamed": _of_table(_with_a_column_renamed),
    "column more": _of_table(_with_a_column_more),
    "another type": _of_table(_of_another_type),
    "matrices as rows": _of_table(_as_rows_of_matrices),
    "rows in any order": _of_table(_taken(lambda rows, random: random.permutation(rows))),
    "rows backwards": _of_table(_taken(lambda rows, random: range(rows)[::-1])),
    "no rows": _of_table(_taken(lambda rows, random: ())),
    "a row twice": _of_table(_taken(_one_twice)),
    "all rows twice": _of_table(_taken(lambda rows, random: [*range(rows), *range(rows)])),
}


# --- weights ---------------------------------------------------------------------------------------------------------


def _of_state(change: Callable[[dict[str, torch.Tensor], str, Random], dict]) -> Mutation:
    """Of one tensor's name, whichever container the file is."""

    def mutated(content: bytes, random: Random) -> bytes:
        is_torch = content[:2] == b"PK"
        state = torch.load(io.BytesIO(content), weights_only=True) if is_torch else load(content)
        state = change(state, chosen(random, sorted(state)), random)
        if not is_torch and all(isinstance(each, torch.Tensor) for each in state.values()):
            return save({name: tensor.contiguous() for name, tensor in state.items()})
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()

    return mutated


def _with_a_value(value: float) -> Callable:
    def change(state: dict, name: str, random: Random) -> dict:
        state[name].view(-1)[int(random.integers(state[name].numel()))] = value
        return state

    return change


WEIGHTS: Mutations = {
    **without(WHOLE_FILE, "noise", "tail of zeros"),  # other numbers are other weights; their digest is recorded
    "tensor missing": _of_state(lambda state, name, random: {each: state[each] for each in state if each != name}),
    "tensor renamed": _of_state(
        lambda state, name, random: {f"{each}s" if each == name else each: state[each] for each in state}
    ),
    "tensor transposed": _of_state(
        lambda state, name, random: state | {name: state[name].reshape(*state[name].shape[::-1])}
    ),
    "tensor shorter": _of_state(lambda state, name, random: state | {name: state[name].flatten()[:-1]}),
    "tensor of nothing": _of_state(lambda state, name, random: state | {name: state[name][:0]}),
    "tensor flat": _of_state(lambda state, name, random: state | {name: state[name].flatten()}),
    "whole numbers": _of_state(lambda state, name, random: state | {name: (100 * state[name]).to(torch.int32)}),
    "float64": _of_state(lambda state, name, random: state | {name: state[name].double()}),
    "not a number": _of_state(_with_a_value(math.nan)),
    "infinite": _of_state(_with_a_value(math.inf)),
    "tensor that is none": _of_state(lambda state, name, random: state | {name: chosen(random, (None, 5, "abc", [1]))}),
    "prefixed": _of_state(lambda state, name, random: {f"module.{each}": state[each] for each in state}),
    "one prefixed": _of_state(
        lambda state, name, random: {f"module.{each}" if each == name else each: state[each] for each in state}
    ),
    "wrapped": _of_state(lambda state, name, random: {chosen(random, ("model", "state_dict", "teacher")): state}),
    "wrapped unknown": _of_state(lambda state, name, random: {"some": {"thing": state}, "epoch": 3}),
    "a list": _of_state(lambda state, name, random: {"model": list(state.values())}),
    "empty dictionary": _of_state(lambda state, name, random: {"model": {}}),
}


# --- a store ---------------------------------------------------------------------------------------------------------

ZARR_JSON: Mutations = without(JSON, "line ends of Windows", "byte order mark", "UTF-16")
CHUNK: Mutations = without(WHOLE_FILE, "line ends of Windows")


def _with_a_bit_turned(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    changed[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _with_rows_changed(table: pa.Table, random: Random) -> pa.Table:
    name = chosen(random, table.column_names)
    column = table[name].to_pylist()
    row = int(random.integers(len(column)))
    column[row] = column[(row + 1) % len(column)] if random.integers(2) else None
    return _with_column(table, name, pa.array(column, table.schema.field(name).type))


INDEX: Mutations = {
    **CHUNK,
    "column missing": _of_table(lambda table, random: table.drop_columns([chosen(random, table.column_names)])),
    "another value": _of_table(_with_rows_changed),
    "no rows": _of_table(_taken(lambda rows, random: ())),
    "a row twice": _of_table(_taken(_one_twice)),
    "a row less": _of_table(_taken(lambda rows, random: range(rows - 1))),
    "rows backwards": _of_table(_taken(lambda rows, random: range(rows)[::-1])),
}
CHUNK["a bit turned"] = INDEX["a bit turned"] = _with_a_bit_turned
