"""Where this is imported, flushing takes no time: no test cuts the power, and a killed process leaves what it wrote.

Waiting for the disk is more than half of a small extraction. The calls stay, for tests that count them or make them
fail.
"""

from __future__ import annotations

import os

os.fsync = os.fstat  # which fails as well where there is no such descriptor
