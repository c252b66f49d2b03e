"""`hashlight train`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, progress_bar, training_bar
from hashlight.pipelines.cli.options import (
    CORPUS_HELP,
    EMBEDDINGS_HELP,
    CorpusNames,
    EmbeddingColumnOption,
    OverwriteOption,
    refuse_missing,
)

if TYPE_CHECKING:
    from hashlight.encoders.training.train import TrainConfig
    from hashlight.pipelines.training.material import Material

_SHOWN_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained."""

    method: Annotated[
        str | None,
        typer.Option(
            help="auto (by default): hashnet if there are labels or pairs, else neighbours up to 64 bits from 2,000 "
            "images or embeddings on, else itq. All: hashnet, hashnet-c, hashnet-w, hashnet-ste, hashnet-sgn, "
            "hashnet-sharp, hashnet-st, dhn, latent, joint, csq, orthohash; on the backbone's features or --embeddings "
            "itq, neighbours, lsh, sh; on features itq-cca, sdh, ksh."
        ),
    ] = None
    bits: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Bits of a code: 48 by default, 256 of --embeddings.")
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(
            help="small-cnn, efficientnet-lite0, a torchvision classification model, timm:NAME, "
            "open_clip:NAME/PRETRAINED, hf:NAME, onnx:FILE or python:MODULE:FACTORY; without it small-cnn, or, if "
            "there are neither labels nor pairs, efficientnet-lite0 with the weights of its package."
        ),
    ] = None
    weights: Annotated[
        str | None, typer.Option(help="Backbone weights: a file, or the name of weights the backbone has.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What is fitted to, if not images."""

    embeddings: Annotated[
        str | None,
        typer.Option(help=f"Fit to embeddings, in the place of --input. {EMBEDDINGS_HELP}", callback=refuse_missing),
    ] = None
    embedding_column: EmbeddingColumnOption = ""
    normalise: Annotated[
        bool,
        typer.Option(
            "--normalise/--no-normalise",
            help="Scale embeddings to length 1 first, as for cosines.",
        ),
    ] = True


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """What says which images are alike."""

    supervision: Annotated[
        str | None,
        typer.Option(help="labels, pairs, views (two of each image, to find copies) or nothing; else what is there."),
    ] = None
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Train on pairs (CSV or Parquet, or s3://: a, b, similar), not labels.", callback=refuse_missing
        ),
    ] = None
    labels: Annotated[
        Literal["auto", "folders"],
        typer.Option(help="auto: names of sub-folders are labels if they look like classes; folders: in any case."),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class Course:
    """The course of the training; None is the default of `encoders.training.train.TrainConfig`."""

    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images; 7 after a warm-up from random weights, else 15.")
    ] = None
    warmup_epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Passes of classification before; with labels 20 from random weights, 12 for joint from others, or 0.",
        ),
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=4, help="Images per step, all pairs of which count; 64.")] = None
    chunk_size: Annotated[int | None, typer.Option(min=2, help="Images of a batch in memory at a time; all.")] = None
    frozen_stages: Annotated[
        str | None,
        typer.Option(help="Stages of the backbone that keep their weights, from the image on: a number, or all."),
    ] = None
    stage_decay: Annotated[
        float | None, typer.Option(help="Ratio of a stage's learning rate to that of the next one; 1.")
    ] = None
    schedule: Annotated[str | None, typer.Option(help="How beta rises: stages (by default), released or constant.")] = (
        None
    )
    final_beta: Annotated[float | None, typer.Option(min=1, help="Final beta; by schedule, 30 or 7.07.")] = None
    validation_images: Annotated[
        int | None, typer.Option(min=0, help="Hold out this many images, and choose the best epoch on them.")
    ] = None
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after this many epochs without improvement.")] = None


@dataclass(frozen=True, kw_only=True)
class Computation:
    """How it is computed."""

    precision: Annotated[str | None, typer.Option(help="float32 (by default), bfloat16 (mixed) or float64.")] = None
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network.")] = False
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu"
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes that train."""

    workers: Annotated[
        int | None, typer.Option(min=1, help="Train on Ray: processes that share every batch, one CPU or GPU each.")
    ] = None
    address: Annotated[str | None, typer.Option(help="With --workers: address of a Ray cluster.")] = None


def train(
    *,
    input: Annotated[
        str | None,
        typer.Option("--input", help=f"{CORPUS_HELP} With --workers it must fit in memory.", callback=refuse_missing),
    ] = None,
    output: Annotated[str, typer.Option("--output", help="Folder for the encoder, or s3://.")],
    embedded: Embedded,
    model: Model,
    similarity: Similarity,
    names: CorpusNames,
    course: Course,
    computation: Computation,
    cluster: Cluster,
    overwrite: OverwriteOption = False,
) -> None:
    """Train an encoder on images, or fit one to embeddings; an interrupted training resumes where it stopped."""
    if embedded.embeddings is not None and input is None:
        _fit(embedded, output, model, computation, overwrite, (similarity, names, course, cluster))
        return
    if input is None or embedded.embeddings is not None:
        raise typer.BadParameter("give one of --input, a corpus of images, and --embeddings")
    from hashlight.engine.places.uris import without_credentials
    from hashlight.pipelines.training.material import SUPERVISIONS, gather
    from hashlight.pipelines.training.train import check_output, check_weights, preparation_for, train_on

    if similarity.supervision not in (None, *SUPERVISIONS):
        raise typer.BadParameter(
            f"--supervision must be one of {', '.join(SUPERVISIONS)}, got {similarity.supervision!r}"
        )
    options = names.parsed()
    _config(model, course, computation)
    place = check_output(output, overwrite=overwrite, workers=cluster.workers, address=cluster.address)
    check_weights(model.weights)
    start = time.perf_counter()
    preparation = preparation_for(model.backbone, model.weights, place, workers=cluster.workers)
    material = gather(input, **asdict(similarity), options=options, method=model.method, preparation=preparation)
    config = _config(_completed(model, material), course, computation)
    _announce(material, config, is_chosen=model.method in (None, "auto"))
    with training_bar() as report:
        encoder = train_on(
            material,
            output,
            config,
            overwrite=overwrite,
            workers=cluster.workers,
            address=cluster.address,
            progress=report,
        )
    seconds = time.perf_counter() - start
    out.print(
        f"trained {counted(encoder.bits, 'bit')} by {encoder.config.method} in {seconds:.0f} s: "
        f"{without_credentials(output)}, encoder {encoder.fingerprint[:12]}…",
        soft_wrap=True,
    )


def _fit(
    embedded: Embedded, output: str, model: Model, computation: Computation, overwrite: bool, others: tuple[object, ...]
) -> None:
    """Fit an encoder to embeddings."""
    from hashlight.encoders.config import AUTO
    from hashlight.engine.places.uris import without_credentials
    from hashlight.pipelines.training.embeddings import fit_to_embeddings

    images_only = [*others, replace(model, method=None, bits=None), replace(computation, seed=0)]
    defaults = [type(group)() for group in images_only]
    if given := [
        f"--{field.name.replace('_', '-')}"
        for group, default in zip(images_only, defaults, strict=True)
        for field in fields(group)  # type: ignore[arg-type]
        if getattr(group, field.name) != getattr(default, field.name)
    ]:
        raise typer.BadParameter(f"a fit to --embeddings has no use for {', '.join(given)}: leave it out")
    source, start = embedded.embeddings, time.perf_counter()
    assert source is not None, "it is given"
    with progress_bar("fitting") as report:
        encoder = fit_to_embeddings(
            source,
            output,
            bits=model.bits or 256,
            method=model.method or AUTO,
            normalise_embeddings=embedded.normalise,
            column=embedded.embedding_column,
            seed=computation.seed,
            overwrite=overwrite,
            progress=report,
        )
    rows = encoder.config.training["settings"]["rows"]
    out.print(
        f"fitted {counted(encoder.bits, 'bit')} by {encoder.config.method} to {counted(rows, 'embedding')} "
        f"of {encoder.feature_dim} numbers in {time.perf_counter() - start:.0f} s: "
        f"{without_credentials(output)}, encoder {encoder.fingerprint[:12]}…",
        soft_wrap=True,
    )


def _announce(material: Material, config: TrainConfig, *, is_chosen: bool) -> None:
    """Say what will be learned, and from what."""
    if material.refused:
        out.print(
            f"the names of sub-folders are not taken for labels, as they look like {material.refused}; `--labels "
            "folders` takes them",
            soft_wrap=True,
        )
    if material.classes:
        shown = list(material.classes.items())[:_SHOWN_CLASSES]
        more = len(material.classes) - len(shown)
        counts = ", ".join(f"{name} {count:,}" for name, count in shown) + (f", and {more:,} more" if more else "")
        out.print(
            f"{len(material.classes):,} classes: {counts}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    known = {"nothing": "without labels and pairs", "views": "and two views of each"}
    learned = known.get(material.supervision, f"and their {material.supervision}")
    chosen = ", which needs neither" if is_chosen and material.supervision == "nothing" else ""
    out.print(
        f"learning {counted(config.bits, 'bit')} from {counted(len(material.images), 'image')} {learned} by "
        f"{config.method}{chosen}, on {config.backbone}",
        soft_wrap=True,
    )


def _completed(model: Model, material: Material) -> Model:
    """Return the model with what was left out: without labels and pairs, what has learned already."""
    from hashlight.encoders.config import AUTO
    from hashlight.encoders.networks.backbones import EFFICIENTNET_LITE0, IMAGENET
    from hashlight.encoders.training.train import TrainConfig

    method = model.method or AUTO
    if method == AUTO:
        method = material.suited_method(model.bits or TrainConfig().bits)
    if material.supervision == "nothing" and model.backbone is None and model.weights is None:
        return replace(model, method=method, backbone=EFFICIENTNET_LITE0, weights=IMAGENET)
    return replace(model, method=method)


def _config(model: Model, course: Course, computation: Computation) -> TrainConfig:
    """Return the settings that were given; the others are left to the defaults of `TrainConfig`."""
    from hashlight.encoders.methods import METHODS
    from hashlight.encoders.training.train import TrainConfig

    settings = {**asdict(model), **asdict(course), **asdict(computation)}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if (frozen := given.get("frozen_stages", "")).isdigit():
        given["frozen_stages"] = int(frozen)
    try:
        config = TrainConfig(**given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if ignored := METHODS[config.method].ignores & given.keys():
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(ignored))
        raise typer.BadParameter(f"{config.method} has no use for {names}: leave it out")
    return config
