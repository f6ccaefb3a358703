import pytest
import torch

from mirage import MIRAGE, ModelConfig, restore
from mirage.inference import reflect_to_multiple

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 2))


@pytest.fixture(scope="module")
def model() -> MIRAGE:
    torch.manual_seed(0)
    return MIRAGE(CONFIG)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 8), (16, 16), (17, 31)])
def test_the_result_has_the_size_of_the_input(model: MIRAGE, size: tuple[int, int]) -> None:
    for shape in ((3, *size), (2, 3, *size)):
        restored = restore(model, torch.rand(shape))
        assert restored.shape == shape
        assert restored.min() >= 0
        assert restored.max() <= 1


def test_multiples_of_eight_pass_without_padding(model: MIRAGE) -> None:
    degraded = torch.rand(1, 3, 16, 24)
    model.eval()
    assert torch.equal(restore(model, degraded), model(degraded).image.clamp(0, 1).detach())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_even_after_a_failure(
    model: MIRAGE, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train(training)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    restore(model, torch.rand(3, 9, 9))
    assert model.training is training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    monkeypatch.setattr(model.encoder1, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        restore(model, torch.rand(3, 9, 9))
    assert model.training is training


def test_padding_reflects_like_torch_also_beyond_the_size_of_the_image() -> None:
    image = torch.rand(1, 3, 10, 13)
    expected = torch.nn.functional.pad(image, (0, 3, 0, 6), mode="reflect")
    assert torch.equal(reflect_to_multiple(image, 8), expected)
    row = torch.tensor([0.0, 1, 2]).view(1, 1, 1, 3)
    assert reflect_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_the_result_can_be_trained_on(model: MIRAGE) -> None:
    restored = restore(model, torch.rand(3, 8, 8))
    weight = torch.ones((), requires_grad=True)
    (restored * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("degraded", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "float\\(\\) / 255"),
        (torch.full((3, 8, 8), 2.0), r"\[2, 2\]"),
        (torch.full((3, 8, 8), torch.nan), "NaN"),
        (torch.rand(8, 8, 3), "shape"),
        (torch.rand(3, 0, 8), "empty"),
        (torch.rand(3, 8), "shape"),
    ],
)
def test_an_invalid_image_is_refused_with_the_remedy(
    model: MIRAGE, degraded: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        restore(model, degraded)
