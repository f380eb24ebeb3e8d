"""How many images a teacher sees at once: a short probe of this machine."""

from __future__ import annotations

import logging
import re
import time

import psutil
import torch

from .teacher import Teacher

logger = logging.getLogger(__name__)

LARGEST = 64
WORTHWHILE = 1.1  # twice the batch must be that much faster by the image
LONG_S = 0.25  # a batch that takes this long has nothing to gain from more images
REPEATS = 3  # of which the best counts: other work on the machine only ever slows
MEMORY_SHARE = 0.25  # of what is free; the rest is for images read ahead, blocks not yet written, and others


def fitting_batch_size(teacher: Teacher) -> int:
    """The smallest batch, a power of two, from which on doubling it gains less than a tenth in images per second.

    No batch is tried whose activations would take more than a quarter of the memory that is free.
    """
    limit = max(1, min(LARGEST, int(MEMORY_SHARE * free_memory(teacher.device) / bytes_per_image(teacher))))
    _seconds(teacher, 1)  # the first forward pass of a process is slower than all others
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
    """Devices of one kind take one batch size: "cpu", or a GPU's model such as "nvidia-h100-80gb-hbm3"."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def free_memory(device: torch.device) -> int:
    """Bytes of the device that nobody uses; of the CPU, no more than a batch system grants this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    from distributed.system import MEMORY_LIMIT  # knows cgroups and resource limits

    return min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss)


def bytes_per_image(teacher: Teacher) -> int:
    """Of the activations of one image in a batch, about."""
    height, width = (side // teacher.patch_size for side in teacher.image_size)
    return teacher.live_tensors * height * width * teacher.dim * torch.float32.itemsize


def _seconds(teacher: Teacher, size: int) -> float:
    start = time.perf_counter()
    maps = teacher.patch_maps(torch.zeros(size, 3, *teacher.image_size, device=teacher.device))
    maps[0, 0, 0, 0].item()  # waits for a GPU
    return time.perf_counter() - start
