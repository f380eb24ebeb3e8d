"""MinkUNet's sparse convolutions beside dense matrix products of the same sizes, its kernel maps, and memory.

    python tests/benchmarks/minkunet.py [--data DIR] [--device cuda] [--precision bfloat16]

DIR of --data holds real frames (`nuscenes/`, split mini_train); without it, a simulated world stands in. A dense
product of the same size has a row for each pair of voxels that a kernel joins: it is what a convolution would cost if
its rows lay ready. Rounds of both alternate; the fastest of each count. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from student import open_scan

from scalr.distill.backbones.minkunet.config import MinkUNetConfig
from scalr.distill.backbones.minkunet.inputs import MinkUNetInputs, VoxelBatch
from scalr.distill.backbones.minkunet.kernel_maps import occupied_voxels, scan_maps
from scalr.distill.backbones.minkunet.network import MinkUNet
from scalr.distill.backbones.minkunet.sparse_convolution import PointwiseConvolution, SparseConvolution
from scalr.distill.backbones.minkunet.voxels import voxel_coordinates, voxel_keys
from scalr.extract.datasets.synthetic import write_world

INPUTS = MinkUNetInputs()
ROUNDS = 8
Sizes = list[tuple[int, int, int]]  # of each convolution: rows, channels in, channels out


def new_network(device: str) -> MinkUNet:
    torch.manual_seed(0)
    return MinkUNet(MinkUNetConfig(), INPUTS).to(device)


def batch_of(points: np.ndarray, intensity) -> VoxelBatch:
    return INPUTS.pack([INPUTS.prepare(points, intensity).input])


def sizes_of_products(network: MinkUNet, batch: VoxelBatch) -> Sizes:
    sizes = []

    def note(layer, arguments, output) -> None:
        x, *pairs = arguments
        rows = sum(pairs[0].counts) + pairs[0].has_centre * len(x) if pairs else len(x)
        sizes.append((rows, *layer.kernel.shape[-2:]))

    hooks = [
        layer.register_forward_hook(note)
        for layer in network.modules()
        if isinstance(layer, SparseConvolution | PointwiseConvolution)
    ]
    with torch.no_grad():
        network(batch)
    for hook in hooks:
        hook.remove()
    return sizes


def seconds_of_products(sizes: Sizes, device: str, dtype: torch.dtype, *, backward: bool) -> float:
    """Of all products once, each on buffers that are warm: nothing is allocated, and each one's best of two counts."""
    total = 0.0
    for rows, channels, outputs in sizes:
        x, kernel, out = (torch.zeros(shape, device=device, dtype=dtype) for shape in
                          ((rows, channels), (channels, outputs), (rows, outputs)))  # fmt: skip

        def products(x=x, kernel=kernel, out=out) -> None:
            torch.mm(x, kernel, out=out)
            if backward:
                torch.mm(out, kernel.t(), out=x)
                torch.mm(x.t(), out, out=kernel)

        total += min(seconds_of(products, device) for _ in range(2))
    return total


def seconds_of(action: Callable, device: str) -> float:
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - start


def actions_of(network: MinkUNet, batch: VoxelBatch, device: str, dtype: torch.dtype) -> dict[str, Callable]:
    def forward() -> torch.Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return network(batch)

    def evaluation() -> None:
        network.eval()
        with torch.no_grad():
            forward()

    def step() -> None:
        network.train().zero_grad()
        forward().float().square().mean().backward()

    return {"forward": evaluation, "forward and backward": step}


def compare(name: str, points: np.ndarray, intensity, device: str, dtype: torch.dtype) -> None:
    """Print the seconds of both, and the share of the dense products' speed that the network reaches."""
    network, batch = new_network(device), batch_of(points, intensity).to(device)
    sizes = sizes_of_products(network, batch)
    work = sum(rows * channels * outputs for rows, channels, outputs in sizes) / 1e9
    print(f"{name}: {len(points):,} points, {batch.num_points:,} voxels, {work:.1f} GMAC forward", flush=True)
    for title, action in actions_of(network, batch, device, dtype).items():
        backward = title != "forward"
        pairs = [
            (seconds_of(action, device), seconds_of_products(sizes, device, dtype, backward=backward))
            for _ in range(ROUNDS + 1)
        ][1:]
        ours, dense = np.min(pairs, axis=0)
        print(f"  {title:<22} {ours:7.3f} s   dense products {dense:7.3f} s   {dense / ours:4.0%}", flush=True)


def compare_maps(name: str, points: np.ndarray, intensity) -> None:
    """Time and bytes of what the network needs beside features; on one core, as in a loader's worker."""
    torch.set_num_threads(1)

    def voxels() -> np.ndarray:
        return occupied_voxels(voxel_keys(voxel_coordinates(points[:, :3], INPUTS.voxels, INPUTS.voxel_size_m))).keys

    keys, prepared = voxels(), INPUTS.prepare(points, intensity).input
    times = {
        "voxels": min(seconds_of(voxels, "cpu") for _ in range(20)),
        "kernel maps": min(seconds_of(lambda: scan_maps(keys), "cpu") for _ in range(20)),
        "packed": min(seconds_of(lambda: INPUTS.pack([prepared]), "cpu") for _ in range(20)),
    }
    batch = INPUTS.pack([prepared])
    tensors = [getattr(pairs, f.name) for pairs in (*batch.neighbours, *batch.children) for f in fields(pairs)]
    size = sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))
    line = ", ".join(f"{title} {1e3 * seconds:.1f} ms" for title, seconds in times.items())
    print(f"{name}: {line}; {size / 1e6:.1f} MB of kernel maps", flush=True)


def peak_gb() -> float:
    """Of this process alone: what getrusage says begins with what its parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def peak_of(points: np.ndarray, intensity, title: str) -> tuple[float, float]:
    """GB beside those of the imports, the first and the largest: of network and batch, and of the work."""
    imported = peak_gb()
    network, batch = new_network("cpu"), batch_of(points, intensity)
    held = peak_gb() - imported
    actions_of(network, batch, "cpu", torch.float32)[title]()
    return held, peak_gb() - imported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, split = (options.data / "nuscenes", "mini_train") if options.data else (Path(folder) / "world", "train")
        if not options.data:
            write_world(root, layout="nuscenes", train_scenes=1, val_scenes=1, keyframes=1)
        points, intensity, seen = open_scan(root, split)
    scans = {"complete scan": points, "points of the front camera": points[seen[0]]}
    for name, each in scans.items():
        compare(name, each, intensity, options.device, getattr(torch, options.precision))
        for title in ("forward", "forward and backward") if options.device == "cpu" else ():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                held, peak = pool.submit(peak_of, each, intensity, title).result()
            print(f"  {title:<22} peak memory {peak:.2f} GB, {held:.2f} GB of it network and batch", flush=True)
    for name, each in scans.items():
        compare_maps(name, each, intensity)


if __name__ == "__main__":
    main()
