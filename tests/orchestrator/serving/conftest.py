from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.serving.served_model import DegradationPsnr, ServedModel
from tests.orchestrator.serving.inprocess import Running, running, served, small_model


@pytest.fixture(scope="module")
def model() -> ServedModel:
    scores = (DegradationPsnr("rain", 22.7, 24.7), DegradationPsnr("average", 18.0, 22.1))
    return served(small_model(), scores=scores)


@pytest.fixture(scope="module")
def service(model: ServedModel) -> Iterator[Running]:
    with running(model, max_bytes=200_000, max_pixels=100_000) as found:
        yield found
