"""Makes this checkout importable as `scalr` where it is not installed: import this module before anything of scalr."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if "scalr" not in sys.modules:
    # The folder of the checkout may have any name, so that no path for imports would find it.
    _spec = spec_from_file_location("scalr", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["scalr"] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["scalr"])
