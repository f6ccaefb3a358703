"""Score held-out photographs with the run's evaluation model."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.config.schema import METRIC
from orchestrator.data import datasets
from orchestrator.evaluation.previews import comparison_sheet, validation_items
from orchestrator.evaluation.scores import (
    ImageScore,
    as_metrics,
    as_records,
    from_records,
    score_images,
    summarise,
)
from orchestrator.events import Image, Validation
from orchestrator.models import network
from orchestrator.models.network import Network
from orchestrator.training.driver import Driver
from orchestrator.training.run_state import TrainingRun
from shards.dataset import Dataset
from shards.evaluation import EvalItem


def validate(run: TrainingRun, dataset: Dataset, driver: Driver) -> None:
    """Score centre crops of some held-out photographs, divided among the workers, and send a comparison sheet."""
    items = validation_items(datasets.evaluation_set(dataset, run.job), run.job.validation)
    model = run.evaluation_model()
    scores = summarise(
        _score(run, model, items[run.engine.rank :: run.engine.world_size]), run.job.evaluate.degradations
    )
    run.validation = as_metrics(scores, f"val/{run.job.setting}") | {METRIC: scores[-1].psnr}
    if run.job.train.schedule == "plateau":
        run.plateau = run.plateau.after(run.validation[METRIC], run.job.train.patience)
    if run.engine.rank == 0:
        psnr = {score.degradation: score.psnr for score in scores}
        gain = {score.degradation: score.gain for score in scores}
        driver.emit(Validation(run.step, run.validation, psnr, gain))
        with run.without_compilation():
            sheet = comparison_sheet(items, network.restore_function(model), run.engine.device)
        driver.emit(Image("sheet", sheet, run.step))


def evaluate(run: TrainingRun, model: Network, dataset: Dataset) -> list[ImageScore]:
    """Return the scores of all whole held-out photographs, which the workers divide among themselves."""
    items = datasets.evaluation_set(dataset, run.job)
    return _score(run, model, items.items(run.engine.rank, run.engine.world_size))


def _score(run: TrainingRun, model: Network, items: Iterable[EvalItem]) -> list[ImageScore]:
    """Return the scores of all workers' items, on every worker."""
    with run.engine.autocast(), run.without_compilation():
        restore = network.restore_function(model)
        mine = score_images(lambda x: restore(x).float(), items, run.engine.device)
    return from_records(run.engine.all_gather(as_records(mine)))
