"""`mirage pack`: one sub-command for each source of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

from orchestrator.cli.app import (
    DATA,
    Command,
    Processes,
    app,
    emit,
    emit_error,
    epilog,
    option,
    seed_option,
    use_local_cluster,
)

PUBLISHED = {
    "bsd400-wed": "BSD400 and WED, to train denoising",
    "bsd68": "BSD68, to test denoising",
    "urban100": "Urban100, to test denoising",
    "kodak24": "Kodak24, to test denoising",
    "rain100l": "Rain100L: rain, to train and test",
    "reside-ots": "RESIDE OTS: haze, to train",
    "sots-outdoor": "SOTS outdoor: haze, to test",
    "gopro": "GoPro: motion blur, to train and test",
    "lol-v1": "LOL v1: low light, to train and test",
    "cdd11": "CDD-11: eleven combined degradations, to train and test",
    "allweather": "AllWeather: snow, rain with haze, raindrops, to train",
    "snow100k-s": "Snow100K-S: snow, to test",
    "snow100k-l": "Snow100K-L: snow, to test",
    "outdoor-rain-test1": "Outdoor-Rain Test1: rain with haze, to test",
    "raindrop-a": "RainDrop, test set a",
    "raindrop-b": "RainDrop, test set b",
    "uieb": "UIEB: underwater, to test",
    "toled": "UDC TOLED: photographs through a display, to test",
    "poled": "UDC POLED: photographs through a display, to test",
}
"""Published dataset -> what it is."""

_OWN, _PUBLISHED = "Your own photographs", "Published datasets"


class _PackGroup(TyperGroup):
    """The sources. Commands of published datasets are made when they are needed: `mirage --help` stays fast."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_published()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._add_published()
        return super().get_command(ctx, cmd_name)

    def _add_published(self) -> None:
        for dataset in PUBLISHED:
            if dataset not in self.commands:
                self.commands[dataset] = _published_command(dataset)


pack = typer.Typer(
    name="pack",
    cls=_PackGroup,
    help="Pack raw photographs into verified WebDataset shards. Resumable: rerun an interrupted command.",
    no_args_is_help=True,
    subcommand_metavar="SOURCE [OPTIONS]",
    epilog=epilog(
        "mirage pack pairs --root RAW --degraded 'in/{key}.png' --clean 'gt/{key}.png' --degradation rain -o DATASET",
        "mirage pack clean --root PHOTOS -o DATASET",
        "mirage pack synthetic --root PHOTOS --degradation rain --degradation haze -o DATASET",
        "mirage pack rain100l --root RAW -o s3://restoration/rain100l",
    ),
)
app.add_typer(pack, rich_help_panel=DATA)

# Each sub-command's parameters are keys of a job's section `data.pack`, so it hands all of them on by `locals()`.
Out = Annotated[str, option("s3://bucket/name or a folder.", "--out", "-o", default=False, metavar="DATASET")]
Root = Annotated[Path, option("Folder of the raw files.", default=False)]
Encoding = Annotated[
    str,
    option(
        "Lossless tiles: fast (QOI), compact (WebP). Or the files' bytes.", metavar="fast|compact|original"
    ),
]
Jpeg = Annotated[
    str,
    option(
        "How JPEG files are stored: cut for fast crops, as they are, or as tiles of several times the size.",
        metavar="crop|keep|tile",
    ),
]
ShardMib = Annotated[int, option("Approximate size of a shard in MiB.", min=1)]
Partial = Annotated[bool, option("Pack what is there and record what is missing.", "--allow-partial")]
Degradations = Annotated[
    list[str] | None,
    option("Degradation to make. Repeatable.", "--degradation", default="noise25 rain haze blur lowlight"),
]
HeldOut = Annotated[
    list[str] | None,
    option(
        "Photograph for evaluation, by name without suffix, or a file with one name in each line. Repeatable.",
        default=False,
        metavar="NAME|@FILE",
    ),
]
HeldOutShare = Annotated[float, option("Share of the clean files for evaluation.", min=0, max=1)]
Variants = Annotated[int, option("Random draws of each degradation per training photograph.", min=1)]
Seed = Annotated[int, seed_option("Random seed of the degradations.")]
Reread = Annotated[
    bool, option("Read every raw file, also those whose size and time did not change.", "--reread")
]
Licence = Annotated[str, option("Licence of the photographs, for the manifest.")]


@pack.command(
    cls=Command, rich_help_panel=_OWN, epilog=epilog("mirage pack photographs --degradation rain -o DATASET")
)
def photographs(
    out: Out,
    degradations: Degradations = None,
    variants: Variants = 4,
    seed: Seed = 0,
    encoding: Encoding = "fast",
    jpeg: Jpeg = "crop",
    shard_mib: ShardMib = 64,
    jobs: Processes = None,
    reread: Reread = False,
) -> None:
    """Degrade the photographs that ship in Python wheels, as the demo does."""
    _pack("photographs", **locals())


@pack.command(
    cls=Command,
    rich_help_panel=_OWN,
    epilog=epilog("mirage pack clean --root PHOTOS --held-out-share 0.02 -o DATASET"),
)
def clean(
    out: Out,
    root: Root,
    held_out: HeldOut = None,
    held_out_share: HeldOutShare = 0.0,
    licence: Licence = "not stated",
    encoding: Encoding = "fast",
    jpeg: Jpeg = "crop",
    shard_mib: ShardMib = 64,
    jobs: Processes = None,
    reread: Reread = False,
) -> None:
    """Pack a folder of your own clean photographs once; jobs degrade them as they are read."""
    _pack("clean", **locals())


@pack.command(
    cls=Command,
    rich_help_panel=_OWN,
    epilog=epilog(
        "mirage pack synthetic --root PHOTOS --degradation rain --held-out cat --held-out dog -o DATASET"
    ),
)
def synthetic(
    out: Out,
    root: Root,
    degradations: Degradations = None,
    held_out: HeldOut = None,
    variants: Variants = 4,
    seed: Seed = 0,
    licence: Licence = "not stated",
    encoding: Encoding = "fast",
    jpeg: Jpeg = "crop",
    shard_mib: ShardMib = 64,
    jobs: Processes = None,
    reread: Reread = False,
) -> None:
    """Degrade a folder of your own clean photographs."""
    _pack("synthetic", **locals())


@pack.command(
    cls=Command,
    rich_help_panel=_OWN,
    epilog=epilog(
        "mirage pack pairs --root RAW --degraded 'in/{key}_*.png' --clean 'gt/{key}.png' --degradation rain "
        "--held-out-share 0.2 -o DATASET",
        "mirage pack pairs --root RAW --degraded '{split}/in/{key}.png' --clean '{split}/gt/{key}.png' --degradation "
        "phone -o DATASET",
    ),
)
def pairs(
    out: Out,
    root: Root,
    degraded: Annotated[
        str,
        option(
            "Pattern of the degraded files below the root: in/{key}_*.png. {split} is train or test.",
            default=False,
        ),
    ],
    clean: Annotated[str, option("Pattern of the clean files below the root: gt/{key}.png.", default=False)],
    degradation: Annotated[list[str], option("What degraded the files.", default=False)],
    held_out: HeldOut = None,
    held_out_share: HeldOutShare = 0.0,
    licence: Licence = "not stated",
    allow_partial: Partial = False,
    encoding: Encoding = "fast",
    jpeg: Jpeg = "crop",
    shard_mib: ShardMib = 64,
    jobs: Processes = None,
    reread: Reread = False,
) -> None:
    """Pack your own pairs of degraded and clean photographs."""
    given = locals()
    from orchestrator.errors import PlanError

    if len(degradation) > 1:
        names = ", ".join(degradation)
        raise PlanError(
            f"--degradation: pairs have one degradation, and {len(degradation)} are named: {names}."
        )
    _pack("pairs", **{**given, "degradation": degradation[0]})


_ONLY_FOR = {"group": "cdd11", "crops": "gopro"}
"""Option -> the only published dataset that has it."""


def _published_command(dataset: str) -> Any:
    """Return the command that packs a published dataset."""
    single = typer.Typer(add_completion=False)

    @single.command(
        dataset,
        cls=Command,
        rich_help_panel=_PUBLISHED,
        help=f"{PUBLISHED[dataset]}.",
        epilog=epilog(f"mirage pack {dataset} --root RAW -o s3://restoration/{dataset}"),
    )
    def published(
        out: Out,
        root: Root,
        split: Annotated[str, option("Split to pack.", metavar="train|test|all")] = "all",
        list_file: Annotated[
            Path | None, option("Official list of training files.", "--list", default=False)
        ] = None,
        group: Annotated[str, option("Degradations to pack.", metavar="single|double|triple|all")] = "all",
        crops: Annotated[
            bool, option("Cut training frames into 512-pixel crops, 256 apart.", "--crops")
        ] = False,
        exclude_leaked: Annotated[
            bool, option("Leave out training scenes that are test images.", "--exclude-leaked")
        ] = False,
        expect: Annotated[
            list[str] | None,
            option(
                "Number of pairs of a part, where you chose a subset: OTS=350. Repeatable.",
                default=False,
                metavar="PART=N",
            ),
        ] = None,
        allow_partial: Partial = False,
        encoding: Encoding = "fast",
        jpeg: Jpeg = "crop",
        shard_mib: ShardMib = 64,
        jobs: Processes = None,
        reread: Reread = False,
    ) -> None:
        given = locals()
        del given["dataset"], given["expect"]
        _pack(dataset, **given, expected=_counts(expect or []))

    made = typer.main.get_command(single)
    for parameter in made.params:
        if isinstance(parameter, TyperOption) and _ONLY_FOR.get(parameter.name or "", dataset) != dataset:
            parameter.hidden = True  # data.pack refuses it with a clear error
    return made


def _pack(source: str, out: str, jobs: int | None, *, reread: bool, **spec: Any) -> None:
    """Pack the source that `spec`, a section `data.pack`, describes, and print what was written."""
    use_local_cluster()
    from orchestrator.data.datasets import PACK_PHASES, PackCallbacks, pack_dataset
    from orchestrator.progress import progress
    from shards.processes import available_cores

    given = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in spec.items()
        if value is not None
    }
    with progress(emit_error, *PACK_PHASES) as advance:
        callbacks = PackCallbacks(*advance)
        manifest, uri, packed, notice = pack_dataset(
            {"source": source, **given}, out, callbacks, jobs or available_cores(), reread=reread
        )
    if not packed:
        emit(f"{uri} is already packed; nothing was changed.")
    emit(
        f"{uri}: {len(manifest.rows)} samples in {len(manifest.shards)} shards, manifest {manifest.digest[:16]}"
    )
    for split, counts in manifest.counts().items():
        for degradation, count in counts.items():
            emit(f"  {split:<5} {degradation:<13} {count:>7,}")
    for missing in manifest.provenance.get("missing", []):
        emit(f"  left out: {missing['what']}")
    if notice:
        emit(f"  {notice}")


def _counts(texts: list[str]) -> dict[str, int]:
    """Return {part: pairs} of `PART=N` texts."""
    from orchestrator.errors import PlanError

    found = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals or not number.isdigit():
            raise PlanError(
                f"--expect {text!r}: write PART=N, the part and its number of pairs, for example OTS=350."
            )
        found[name] = int(number)
    return found
