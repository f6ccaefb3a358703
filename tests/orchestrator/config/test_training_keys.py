"""Keys of optimiser, schedule and loss: what is impossible is one clear error, and what is unset changes no run."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.identity import run_id
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import LATER_KEYS, Job
from orchestrator.errors import JobFileError
from orchestrator.planning.plan import make_plan


def job(**sections: Any) -> Job:
    values = {
        "name": "keys",
        "recipe": "fast",
        "setting": "5deg",
        "data": {"manifests": "none"},
        "train": {"steps": 100, "warmup_steps": 10},
        "validation": {"every_steps": 10},
        "track": {"experiment": "tests"},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}  # type: ignore[dict-item]
    made = job_from_mapping(values)
    assert isinstance(made, Job)
    return made


CYCLES = [{"steps": 40}, {"steps": 50}]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"train": {"schedule": "restarts"}}, "0 cycles have 10 steps together"),
        (
            {"train": {"schedule": "restarts", "cycles": [{"steps": 40}]}},
            "10 steps of warm-up and 1 cycles have 50 steps together, and the training has 100. Make them equal",
        ),
        (
            {"train": {"schedule": "restarts", "cycles": CYCLES, "steps": None, "epochs": 3}},
            "schedule restarts counts steps. Set train.steps instead of train.epochs",
        ),
        (
            {"train": {"schedule": "restarts", "cycles": [*CYCLES[:1], {"steps": 50, "minimum_rate": 1}]}},
            "train.cycles.1.minimum_rate.*1 is above the learning rate, 0.001. Lower it",
        ),
        ({"train": {"cycles": CYCLES}}, "train.cycles.*is for restarts only, not for train.schedule cosine"),
        ({"train": {"schedule": "multistep"}}, r"train.milestones.*\[\] must be steps in ascending order"),
        ({"train": {"schedule": "multistep", "milestones": [50, 20]}}, "ascending order"),
        ({"train": {"schedule": "multistep", "milestones": [20, 20]}}, "ascending order"),
        ({"train": {"schedule": "multistep", "milestones": [5]}}, r"after train.warmup_steps \(10\)"),
        ({"train": {"schedule": "multistep", "milestones": [100]}}, r"before the end \(100\)"),
        ({"train": {"rate_factor": 0.5}}, "train.rate_factor.*is for multistep and plateau only"),
        ({"train": {"patience": 1}}, "train.patience.*is for plateau only"),
        ({"train": {"minimum_rate": 0.01}}, "0.01 is above the learning rate, 0.001"),
        (
            {"train": {"schedule": "constant", "minimum_rate": 1e-5}},
            "train.minimum_rate.*is for cosine and plateau only, not for train.schedule constant",
        ),
        (
            {"train": {"schedule": "plateau"}, "validation": {"every_steps": 100}},
            "plateau needs validations before the end. Set validation.every_steps below train.steps",
        ),
        ({"train": {"nesterov": True}}, "train.nesterov.*is for sgd only, not for train.optimizer adamw"),
        ({"train": {"optimizer": "lion", "momentum": 0.5}}, "train.momentum.*is for sgd only"),
        ({"train": {"optimizer": "sgd", "nesterov": True, "momentum": 0.0}}, "needs a momentum above 0"),
        ({"loss": {"perceptual_weight": 1}}, "loss.perceptual_network.*is missing"),
        ({"loss": {"perceptual_layers": {"relu5_4": 1}}}, "perceptual_layers"),
        ({"loss": {"perceptual_layers": {}}}, "perceptual_layers"),
        (
            {"loss": {"ssim_weight": 1}, "data": {"crop_pixels": 8}},
            "loss.ssim_weight.*crops of at least 16 pixels",
        ),
        (
            {"loss": {"perceptual_weight": 1, "perceptual_network": "x"}, "data": {"crop_pixels": 8}},
            "loss.perceptual_weight.*crops of at least 16 pixels",
        ),
        ({"loss": {"l1_weight": 0, "fourier_weight": 0, "spd_weight": 0}}, "every term has weight 0"),
        (
            {
                "model": {"class": "a:B", "adapter": "a:b"},
                "loss": {"spd_weight": 0, "edge_weight": 1, "auxiliary_weights": {"edge": 1}},
            },
            "loss.auxiliary_weights.edge.*is the name of another term",
        ),
    ],
)
def test_what_is_impossible_is_one_error_that_names_the_key(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(JobFileError, match=f"(?s){says}"):
        job(**sections)


def test_what_is_possible_is_taken() -> None:
    job(train={"schedule": "restarts", "cycles": CYCLES, "optimizer": "sgd", "nesterov": True})
    job(train={"schedule": "multistep", "milestones": [11, 99]})
    job(train={"schedule": "plateau", "steps": None, "epochs": 3})
    network = {"class": "a:B", "adapter": "a:b"}
    job(
        model=network, loss={"spd_weight": 0, "auxiliary_weights": {"edge": 1}}
    )  # a term of the network's own


def test_keys_at_their_default_leave_a_run_its_identity() -> None:
    """Each later key is left out of the hash at its default, and any other value makes another run."""
    other = {
        "data.margin_pixels": 8,
        "loss.perceptual_network": "vgg.pth",
        "loss.perceptual_layers": {"conv1_1": 1.0},
        "loss.auxiliary_weights": {"balance": 1.0},
        "model.adapter": "a:b",
        "train.nesterov": True,
        "train.cycles": [{"steps": 3}],
        "train.milestones": [3],
        "train.patience": 2,
    }
    plain = job()
    for key in (key for key in LATER_KEYS if "." in key):
        section, _, name = key.partition(".")
        values = getattr(plain, section).model_dump(by_alias=True) | {name: other.get(key, 0.25)}
        changed = plain.model_copy(update={section: type(getattr(plain, section)).model_validate(values)})
        assert run_id(changed, []) != run_id(plain, []), key


def test_a_plan_counts_the_moments_of_each_optimiser_and_names_terms_and_schedule() -> None:
    def planned(**train: Any) -> Any:
        return make_plan(job(train=train), strict=False)

    weights = planned().estimates[0].memory.weights
    for keys, moments in (({}, 2), ({"optimizer": "lion"}, 1), ({"optimizer": "sgd"}, 1)):
        assert planned(**keys).estimates[0].memory.optimizer == moments * weights
    assert planned(optimizer="sgd", momentum=0.0).estimates[0].memory.optimizer == 0
    text = make_plan(
        job(train={"schedule": "multistep", "milestones": [20]}, loss={"edge_weight": 0.05}), strict=False
    ).render()
    assert "1 L1 + 0.1 Fourier + 0.05 SPD + 0.05 edge" in text
    assert "schedule multistep: x 0.1 at steps 20" in text
    assert "Lion was published with (0.9, 0.99)" in planned(optimizer="lion").render()
    late = make_plan(
        job(train={"schedule": "plateau"}, validation={"every_steps": 20}), strict=False
    ).render()
    assert "4 validations before its end, too few for train.patience 5" in late
