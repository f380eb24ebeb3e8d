"""Measure how many images a teacher should process per forward pass on this machine."""

from __future__ import annotations

import logging
import re
import time

import psutil
import torch

from .teacher import Teacher

logger = logging.getLogger(__name__)

LARGEST = 64
WORTHWHILE = 1.1  # minimum gain in images per second from a batch of twice the size
LONG_S = 0.25  # a batch that takes this long gains nothing from more images
REPEATS = 3  # the fastest is used: other work on the machine only slows a repeat down
MEMORY_SHARE = 0.25  # fraction of the free memory; the rest is for images read ahead, blocks being written, and others


def fitting_batch_size(teacher: Teacher) -> int:
    """Find the smallest power of two beyond which doubling the batch gains less than a tenth in images per second.

    No batch is tried whose activations would take more than a quarter of the free memory.
    """
    limit = max(1, min(LARGEST, int(MEMORY_SHARE * free_memory(teacher.device) / bytes_per_image(teacher))))
    _seconds(teacher, 1)  # the first forward pass of a process is slower than later ones
    chosen, best_rate, size = 1, 0.0, 1
    while size <= limit:
        seconds = _seconds(teacher, size)
        if seconds < LONG_S:
            seconds = min(seconds, *(_seconds(teacher, size) for _ in range(REPEATS - 1)))
        if size / seconds < WORTHWHILE * best_rate:
            break
        chosen, best_rate = size, size / seconds
        if seconds > LONG_S:
            break
        size *= 2
    logger.info("%s: batch size %d chosen (%.3g images/s on %s)", teacher.name, chosen, best_rate, teacher.device)
    return chosen


def kind_of_device(device: torch.device) -> str:
    """Name the kind of a device, "cpu" or a GPU's model such as "nvidia-h100-80gb-hbm3"; a kind has one batch size."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def free_memory(device: torch.device) -> int:
    """Free memory of the device in bytes; on a CPU, at most what a batch system grants this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    from distributed.system import MEMORY_LIMIT  # respects cgroups and resource limits

    return min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss)


def bytes_per_image(teacher: Teacher) -> int:
    """Approximate size of the activations of one image in a batch."""
    height, width = (side // teacher.patch_size for side in teacher.image_size)
    return teacher.live_tensors * height * width * teacher.dim * torch.float32.itemsize


def _seconds(teacher: Teacher, size: int) -> float:
    start = time.perf_counter()
    maps = teacher.patch_maps(torch.zeros(size, 3, *teacher.image_size, device=teacher.device))
    maps[0, 0, 0, 0].item()  # waits for a GPU
    return time.perf_counter() - start
