"""The main job on the packaged images: train, encode, build, evaluate, search; and drawings indexed without labels."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from hashlight.encoders.training.train import TrainConfig
from hashlight.engine.collection.collection import Collection
from hashlight.engine.query import Query
from hashlight.engine.results import PAD_ID
from hashlight.pipelines.building.build import build_collection
from hashlight.pipelines.cli.console import (
    answers_table,
    encoding_bar,
    key_value_table,
    out,
    progress_bar,
    spinner,
    training_bar,
)
from hashlight.pipelines.cli.indexing import program, run_index
from hashlight.pipelines.codes.parts import codes_column, read_parts
from hashlight.pipelines.corpora.drawings import write_drawings
from hashlight.pipelines.corpora.fashion_mnist import split_sample, write_corpus
from hashlight.pipelines.encoding.encode import encode_corpus
from hashlight.pipelines.evaluation.evaluate import evaluate_encoder
from hashlight.pipelines.evaluation.measure import Report
from hashlight.pipelines.evaluation.pictures import Tile, answer_tile, save_grid
from hashlight.pipelines.evaluation.report import REPORT_FILES
from hashlight.pipelines.indexing.choice import NoEncoderError
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.searching.encoder import load_encoder
from hashlight.pipelines.searching.images import encode_file
from hashlight.pipelines.searching.search import find
from hashlight.pipelines.training.train import train_encoder

BITS = 48
SHARDS = 4
# On the same features: two that learn from the same labels, and two without labels.
BASELINES = ("itq-cca", "ksh", "itq", "lsh")
GRID_QUERIES = 8
GRID_ANSWERS = 10

_CORPORA = {"train.parquet", "database.parquet", "queries.parquet"}
_PICTURES = {"answers.png", "query.png", "grid.png"}
_DRAWINGS, _INDEXED = "drawings", "drawings-collection"
_OWN_ENTRIES = {
    _DRAWINGS,
    _INDEXED,
    f".{_INDEXED}.index",
    "encoder",
    ".encoder.training",
    "codes",
    "collection",
    *REPORT_FILES,
    *_CORPORA,
    *_PICTURES,
}


def run_demo(folder: Path) -> Report:
    """Write `folder` with the corpora, the encoder, the codes, the collections, `report.json` and pictures."""
    if folder.exists() and not folder.is_dir():
        raise PipelineError(f"{folder} is a file, expected a folder for the demo: choose another --output")
    foreign = sorted({entry.name for entry in folder.iterdir()} - _OWN_ENTRIES) if folder.is_dir() else []
    if foreign:
        raise PipelineError(f"{folder} holds other files ({', '.join(foreign[:3])}): choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    parts = split_sample()
    corpora = {name: folder / f"{name}.parquet" for name in parts}
    with _timed(seconds, "write the corpora"):
        for name, table in parts.items():
            write_corpus(table, corpora[name])
    with _timed(seconds, f"train HashNet, {BITS} bits"), training_bar() as report:
        train_encoder(corpora["train"], folder / "encoder", TrainConfig(bits=BITS), overwrite=True, progress=report)
    with _timed(seconds, "encode with Ray"), encoding_bar() as report_state:
        for name in ("database", "queries"):
            summary = encode_corpus(
                corpora[name], folder / "encoder", folder / "codes" / name, overwrite=True, progress=report_state
            )
            assert summary.rejects == 0, "the packaged images are whole"
    with _timed(seconds, f"build {SHARDS} shards"), progress_bar("building") as report:
        build_collection(
            folder / "codes" / "database", folder / "collection", shards=SHARDS, overwrite=True, progress=report
        )
    with _timed(seconds, "evaluate"), spinner("evaluating") as say:
        result = evaluate_encoder(
            folder / "encoder",
            database=corpora["database"],
            queries=corpora["queries"],
            train=corpora["train"],
            baselines=BASELINES,
            output=folder,
            progress=say,
        )
    with _timed(seconds, "search and draw"):
        _draw_answers(folder, parts["queries"])
    _tell(folder, result, seconds)
    _index_drawings(folder)
    return result


def _index_drawings(folder: Path) -> None:
    """Index drawings without labels, by one command; end with how to look at them."""
    out.print("and by one command, drawings without labels:", style="bold")
    write_drawings(folder / _DRAWINGS)
    try:
        run_index(folder / _DRAWINGS, folder / _INDEXED, "auto")
    except NoEncoderError as error:
        out.print(f"left out: {error}", soft_wrap=True)


def _draw_answers(folder: Path, queries: pa.Table) -> None:
    """Save a grid: one query of each of the first classes, and its nearest images."""
    collection = Collection.open(folder / "collection")
    _, rows = np.unique(queries["label"].to_numpy(), return_index=True)
    chosen = queries.take(rows[:GRID_QUERIES])
    (folder / "query.png").write_bytes(chosen["image"][0].as_py())
    codes = codes_column(_codes_of(folder / "codes" / "queries", chosen["id"].to_pylist()))
    result = collection.search(codes, GRID_ANSWERS)
    grid = []
    for query, ids, distances in zip(chosen.to_pylist(), result.ids, result.distances, strict=True):
        answers = collection.get(ids[ids != PAD_ID]).to_pylist()
        tiles = [
            answer_tile(answer["uri"], f"d={distance} {answer['label_name']}")
            for answer, distance in zip(answers, distances, strict=True)
        ]
        grid.append([Tile(query["image"], query["label_name"]), *tiles])
    save_grid(grid, folder / "answers.png")


def _codes_of(codes: Path, ids: list[int]) -> pa.ChunkedArray:
    """Take the codes of `ids`, in that order, from a folder of codes."""
    table = pa.concat_tables(list(read_parts(codes)))
    row_of = {id_: row for row, id_ in enumerate(table["id"].to_pylist())}
    return table["code"].take(pa.array([row_of[id_] for id_ in ids]))


def _tell(folder: Path, report: Report, seconds: dict[str, float]) -> None:
    out.print(key_value_table("what was done", {step: f"{spent:.1f} s" for step, spent in seconds.items()}))
    quality = {f"mAP, {title}": f"{report.methods[name].map_all:.3f}" for name, title in report.titles().items()}
    out.print(
        key_value_table(
            "retrieval",
            {
                **quality,
                "mAP, relaxed codes": f"{report.map_relaxed:.3f}",
                "gap to signs": f"{report.relaxed_gap:+.3f}",
            },
        )
    )
    collection = Collection.open(folder / "collection")
    query = encode_file(load_encoder(collection), folder / "query.png")
    out.print(f"nearest to {folder / 'query.png'}:")
    out.print(answers_table(find(collection, query.codes, Query(k=5), projections=query.projections)[0]))
    out.print(f"pictures: {folder / 'answers.png'}, {folder / 'precision_recall.png'}; numbers: {folder / 'report.md'}")
    out.print("try next:", style="bold")
    image = folder / "query.png"
    for arguments in (
        f"search {folder / 'collection'} --image {image} -k 10",
        f"search {folder / 'collection'} --image {image} --radius 2 --save {folder / 'grid.png'}",
        f"info {folder / 'collection'}",
    ):
        out.print(f"  {program()} {arguments}", soft_wrap=True)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
