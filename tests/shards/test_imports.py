"""What can be used where little is installed: DESIGN.md, 'GPU checks'."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shards


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(name.split('.')[0] for name in sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_package_itself_costs_nothing():
    assert not loaded_by("import shards") & {"torch", "numpy", "boto3", "webdataset", "PIL", "imagecodecs"}


@pytest.mark.parametrize("module", ["order", "noise", "augment"])
def test_order_noise_and_augmentation_need_neither_storage_nor_codecs(module: str):
    assert not loaded_by(f"import shards.{module}") & {
        "boto3",
        "botocore",
        "webdataset",
        "PIL",
        "imagecodecs",
    }


def test_reading_a_local_dataset_needs_no_boto3_and_no_webdataset():
    assert not loaded_by("import shards.stream, shards.evaluation") & {
        "boto3",
        "botocore",
        "webdataset",
        "ray",
    }


def test_every_exported_name_exists():
    for name in shards.__all__:
        assert getattr(shards, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        shards.nonsense  # noqa: B018
