"""The feature store: all code that knows the format on disk; other code uses these names and plain arrays."""

from .contents import ScanBlock, Segments, Source, StoredView, TargetBlock
from .draft import Draft, NewTargets, NewView
from .format import SCANS
from .reader import FeatureStore, open_store
from .writer import StoreWriter, create_store

__all__ = [
    "SCANS",
    "Draft",
    "FeatureStore",
    "NewTargets",
    "NewView",
    "ScanBlock",
    "Segments",
    "Source",
    "StoreWriter",
    "StoredView",
    "TargetBlock",
    "create_store",
    "open_store",
]
