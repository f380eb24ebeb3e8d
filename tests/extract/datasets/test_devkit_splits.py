from __future__ import annotations

from scalr.extract.datasets.devkit_splits import devkit_splits


def test_splits_are_those_that_the_devkit_gives():
    from nuscenes.utils.splits import create_splits_scenes

    ours, expected = devkit_splits(), create_splits_scenes()
    assert {name: ours[name] for name in expected} == expected
