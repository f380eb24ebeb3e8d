"""The feature store: everything that knows the format on disk; others see these names and plain arrays."""

from .format import SCANS
from .reader import FeatureStore, ScanBlock, Source, StoredView, TargetBlock, open_store
from .writer import StoreWriter, create_store

__all__ = [
    "SCANS",
    "FeatureStore",
    "ScanBlock",
    "Source",
    "StoreWriter",
    "StoredView",
    "TargetBlock",
    "create_store",
    "open_store",
]
