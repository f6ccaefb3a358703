import json

import pytest

from mirage import ModelConfig


def test_defaults_are_tiny_and_small_differs_in_two_numbers() -> None:
    assert ModelConfig() == ModelConfig.tiny()
    assert ModelConfig.small() == ModelConfig(dim=30, refinement_blocks=3)


def test_json_round_trip_gives_an_equal_configuration() -> None:
    config = ModelConfig(dim=12, heads=(1, 1, 2, 2), branch_ratios=(2, 1, 1), drop_path=0.0)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 25}, "dim=25.*Nearest: 24 or 30"),
        ({"dim": 20}, "dim=20.*multiple of 3.*Nearest: 18 or 24"),
        ({"dim": 4}, "dim=4.*Nearest: 6"),
        ({"dim": 24, "branch_ratios": (4, 1, 2)}, "dim=24.*multiple of 7.*Nearest: 14 or 28"),
        ({"dim": True}, "dim=True"),
        ({"heads": (3, 2, 4, 8)}, "3 heads do not divide the 8 attention channels of encoder1. Nearest: 2"),
        ({"heads": (1, 2, 4)}, "heads=.*4 whole numbers"),
        ({"blocks": (3, 5, 0, 7)}, "blocks=.*at least 1"),
        ({"branch_ratios": (0, 0, 0)}, "at least one branch"),
        ({"branch_ratios": (1, -1, 1)}, "branch_ratios=.*at least 0"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"ffn_expansion": 0.0}, "ffn_expansion=0.0"),
        ({"shallow_tap": "encoder2"}, "shallow_tap='encoder2': must be one of encoder1, patch_embed"),
        ({"kernels": "fixed"}, "kernels='fixed': must be one of dynamic, static"),
        ({"fusion": "none"}, "fusion='none': must be one of gated, concatenation"),
        (
            {"alignment": "riemann"},
            "alignment='riemann': must be one of spd, euclidean, log_euclidean, geodesic, none",
        ),
        ({"batch_norm": "sync"}, "batch_norm='sync': must be one of synced, local"),
        ({"refinement_block": 3}, 'did you mean "refinement_blocks"'),
    ],
)
def test_an_invalid_value_is_named_with_the_nearest_valid_one(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)
