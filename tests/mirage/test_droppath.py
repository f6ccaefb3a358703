from dataclasses import replace

import torch

from mirage import MIRAGE, ModelConfig
from mirage.droppath import drop_path_scales, uniform_by_key

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 1, 1), drop_path=0.5)


def splitmix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_draws_are_splitmix64_in_exact_integers() -> None:
    keys, golden = [0, 1, 162_646 * 150, 2**63 - 1], 0x9E3779B97F4A7C15
    draws = uniform_by_key(torch.tensor(keys), rows=3, seed=7)
    for row in range(3):
        for column, key in enumerate(keys):
            base = splitmix((key + splitmix(7 + golden)) % 2**64)
            expected = splitmix((base + (row + 1) * golden) % 2**64) >> 11
            assert draws[row, column].item() == expected / 2**53


def test_draws_are_uniform_and_rows_are_independent() -> None:
    draws = uniform_by_key(torch.arange(20_000), rows=4, seed=0)
    assert (draws.mean(1) - 0.5).abs().max() < 0.01
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.03
    # Neighbouring keys are independent, too.
    assert torch.corrcoef(torch.stack((draws[0, 1:], draws[0, :-1])))[0, 1].abs() < 0.03


def test_a_draw_depends_on_key_row_and_seed_alone() -> None:
    draws = uniform_by_key(torch.tensor([3, 1, 2]), rows=2, seed=0)
    assert torch.equal(draws[:, 1:2], uniform_by_key(torch.tensor([1]), rows=2, seed=0))
    assert not torch.equal(draws, uniform_by_key(torch.tensor([3, 1, 2]), rows=2, seed=1))


def test_the_mean_of_the_scales_is_one() -> None:
    for keys in (torch.arange(20_000), None):
        scales = drop_path_scales(0.1, 3, 20_000, keys, 0, torch.device("cpu"))
        assert set(scales.unique().tolist()) == {0.0, 1 / (1 - 0.1)}
        assert (scales.mean(1) - 1).abs().max() < 0.01


def test_a_sample_skips_the_same_blocks_whatever_the_rest_of_the_batch() -> None:
    torch.manual_seed(0)
    model = MIRAGE(replace(CONFIG, batch_norm="local")).double()
    seen = []
    for block in model.modules():
        if hasattr(block, "mixer"):
            block.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    model(images, torch.tensor([10, 11, 12, 13]))
    together, seen[:] = torch.stack(seen), []
    model(images[2:], torch.tensor([12, 13]))
    assert together.shape == (8, 4)
    assert torch.equal(together[:, 2:], torch.stack(seen))
    assert together.unique().tolist() == [0.0, 2.0]


def test_a_skipped_path_leaves_the_shortcut() -> None:
    model = MIRAGE(CONFIG).double()
    branch = model.encoder1[0].mixer.convolution
    x = torch.rand(2, 8, 8, 2, dtype=torch.float64)
    out = branch(x, torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(out[0], branch.project(x[0]))
    assert not torch.allclose(out[1], branch.project(x[1]))


def test_the_models_seed_changes_the_draws_and_probability_zero_stops_them() -> None:
    torch.manual_seed(0)
    images, keys = torch.rand(8, 3, 16, 16), torch.arange(8)
    model = MIRAGE(CONFIG)
    first = model(images, keys).image
    model.drop_path_seed = 1
    assert not torch.equal(first, model(images, keys).image)
    still = MIRAGE(replace(CONFIG, drop_path=0.0))
    assert torch.equal(still(images, keys).image, still(images).image)
