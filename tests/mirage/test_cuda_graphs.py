"""The behaviour of CUDA graphs that a CPU can test; `tests/gpu/test_graphs.py` tests the rest on a GPU."""

import warnings

import pytest
import torch

from mirage import MIRAGE, ModelConfig, restore
from mirage.cuda_graphs import GraphedModel, LRUCache
from mirage.inference import GRAPH_PIXELS, RepeatedSizes

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2))


def test_the_least_recently_used_value_is_dropped_first() -> None:
    recent: LRUCache[str, str] = LRUCache(2)
    made = []

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]
    assert "c" not in recent
    assert len(recent) == 2


def test_a_value_whose_creation_fails_is_not_cached() -> None:
    recent: LRUCache[str, float] = LRUCache(1)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 / 0)
    assert len(recent) == 0


def test_a_cache_of_size_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="limit=0: must be at least 1"):
        LRUCache(0)


def test_on_a_cpu_the_model_runs_eagerly_after_one_warning() -> None:
    torch.manual_seed(0)
    model = MIRAGE(CONFIG).eval()
    graphed = GraphedModel(model)
    x = torch.rand(1, 3, 16, 24)
    with pytest.warns(UserWarning, match="CUDA graphs need a CUDA device; on cpu the model runs eagerly"):
        first = graphed(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = graphed(x)
    with torch.inference_mode():
        assert torch.equal(first, model(x).image)
    assert torch.equal(first, second)
    assert len(graphed.recorded) == 0


def test_restore_uses_the_given_graphs() -> None:
    torch.manual_seed(0)
    model = MIRAGE(CONFIG)
    x = torch.rand(3, 13, 21)
    graphed = GraphedModel(model)
    with pytest.warns(UserWarning, match="CUDA graphs"):
        found = restore(model, x, graphs=graphed)
    assert torch.equal(found, restore(model, x))


def test_graphs_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="graphs: belong to another model"):
        restore(MIRAGE(CONFIG), torch.rand(3, 16, 16), graphs=GraphedModel(MIRAGE(CONFIG)))


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        GraphedModel(MIRAGE(CONFIG))(torch.rand(1, 3, 16, 16))


class OnCUDA(torch.Tensor):
    """A tensor that claims to be on CUDA: there is no GPU here, and the choice looks at device and size only."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def test_a_small_size_is_replayed_from_its_second_batch_on_and_on_cuda_alone() -> None:
    sizes = RepeatedSizes(MIRAGE(CONFIG).eval())
    small, other = (torch.empty(1, 3, 16, side).as_subclass(OnCUDA) for side in (16, 24))
    large = torch.empty(1, 3, 8, GRAPH_PIXELS // 8 + 1).as_subclass(OnCUDA)
    assert [sizes.graphs(x) is not None for x in (small, other, small, other, small[0], large, large)] == [
        *(False, False, True, True),
        *(False, False, False),
    ]
    assert [sizes.graphs(torch.empty(1, 3, 16, 16)) for _ in range(3)] == [None] * 3
