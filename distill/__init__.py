"""Stage two: WaffleIron students, trained on the targets of a store."""
