"""An index job in the terminal: its plan, how far it is, and what to do next."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import encoding_bar, err, key_value_table, out, progress_bar, spinner

if TYPE_CHECKING:
    from hashlight.engine.collection.writing.transaction import Commit
    from hashlight.engine.features import FeatureKind
    from hashlight.pipelines.codes.summary import EncodeSummary
    from hashlight.pipelines.indexing.index import IndexJob, Plan


_NAMED = 20  # images that could not be encoded, named in the terminal


def run_index(images: str | Path, output: str | Path, encoder: str, features_as: FeatureKind | None = None) -> None:
    """Index images, and say what is done and what to do next."""
    from hashlight.engine.places.uris import without_credentials
    from hashlight.pipelines.indexing.index import index_job

    shown = without_credentials(str(output))
    with contextlib.ExitStack() as stack:
        with spinner("looking at the images"):
            job = stack.enter_context(index_job(images, output, encoder, features_as))
        if job.plan is None:
            others = f"; {counted(job.unreadable, 'other')} cannot be decoded" if job.unreadable else ""
            out.print(f"{shown} has all images of {without_credentials(str(images))}{others}", soft_wrap=True)
        else:
            out.print(_plan_table(job.plan))
            _, done = run_steps(job)
            _tell(done, shown)
    image = shlex.quote(job.example or "PICTURE.jpg")
    out.print("next, search by an image of yours, or open the page in a browser:", style="bold")
    out.print(f"  {program()} search {shlex.quote(shown)} --image {image}", soft_wrap=True)
    out.print(f"  {program()} serve {shlex.quote(shown)}    # http://127.0.0.1:8000", soft_wrap=True)


def program() -> str:
    """Return the command, as a shell finds it."""
    return "hashlight" if shutil.which("hashlight") else os.path.relpath(Path(sys.executable).parent / "hashlight")


def run_steps(job: IndexJob) -> tuple[EncodeSummary, Commit]:
    """Do what is planned, with bars."""
    with spinner("fitting the encoder") if job.fits else contextlib.nullcontext():
        job.fit()
    with encoding_bar() as report_state:
        encoded = job.encode(report_state)
    if encoded.rejects:
        _tell_rejects(encoded, job.rejects(_NAMED))
    with progress_bar("building") as report:
        return encoded, job.build(report)


def _plan_table(plan: Plan) -> Table:
    from hashlight.pipelines.corpora.listing import told

    images = "a number that is known once they are read" if plan.work.images is None else f"{plan.work.images:,}"
    if plan.known:
        images += f" new ones; {plan.known:,} are there"
    if plan.work.skipped:
        images += f"; left out {told(plan.work.skipped)}"
    kept = [f"{counted(plan.bits, 'bit')} each"]
    if plan.features is not None:
        kept.append(f"{plan.features:,} features to re-rank by, as {plan.features_as}")
    if plan.thumbnail:
        kept.append(f"a thumbnail of {plan.thumbnail} pixels")
    rows = {"images": f"{images}, in {plan.work.corpus}", "they are": plan.look.describe(), "encoder": plan.encoder}
    rows["codes"] = ", ".join(kept)
    if plan.seconds is not None and plan.num_bytes is not None:
        rows["it takes"] = f"about {_duration(plan.seconds)}; {_size(plan.num_bytes)}, and twice as much while it runs"
    return key_value_table("plan", rows)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"


def _tell_rejects(encoded: EncodeSummary, named: list[tuple[str, str]]) -> None:
    from hashlight.engine.places.uris import without_credentials

    kinds = ", ".join(f"{count:,} {kind}" for kind, count in encoded.reject_kinds.items())
    err.print(f"{counted(encoded.rejects, 'image')} could not be encoded ({kinds}):", soft_wrap=True)
    for uri, reason in named:
        err.print(f"  {without_credentials(uri)}: {reason}", soft_wrap=True)
    if left := encoded.rejects - len(named):
        err.print(f"  and {left:,} more: `hashlight encode` writes a list of all", soft_wrap=True)


def _tell(done: Commit, shown: str) -> None:
    replaced = f", {done.deleted:,} of them in place of others" if done.deleted else ""
    out.print(f"indexed {counted(done.added, 'image')}{replaced}: version {done.version} of {shown}", soft_wrap=True)
