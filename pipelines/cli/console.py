"""What a person at a terminal sees."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

# Paths and attributes are shown as they are: markup would take `[...]` in them for styles.
out = Console(markup=False, emoji=False, highlight=False)
if not out.is_terminal:
    # A program that reads the output wants one line per row.
    out.width = 10_000
err = Console(stderr=True, markup=False, emoji=False, highlight=False)

_SECONDS_PER_LINE = 10


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on the standard error; yields a function of (done, total)."""
    if not err.is_terminal:
        yield _plain_lines(title)
        return
    with _bar() as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def fetching_bar() -> Iterator[Callable[[int, int], None]]:
    """Show bytes that are being fetched, as soon as there are any; yields a function of (done, total)."""
    if not err.is_terminal:
        yield _plain_lines("fetching, bytes")
        return
    shown: list[tuple[Progress, TaskID]] = []

    def report(done: int, total: int) -> None:
        if not shown and done < total:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            bar = Progress(TextColumn("{task.description}"), *columns, console=err)
            bar.start()
            shown.append((bar, bar.add_task("fetching", total=total)))
        for bar, task in shown:
            bar.update(task, completed=done, total=total)
        if done == total:
            end()

    def end() -> None:
        while shown:
            shown.pop()[0].stop()

    try:
        yield report
    finally:
        end()


@contextlib.contextmanager
def encoding_bar() -> Iterator[Callable[[Any], None]]:
    """Show how far an encode job is; yields a function of `pipelines.encoding.encode.EncodeProgress`.

    Where the standard error is not a terminal, it writes a line of JSON every ten seconds, and one at the end.
    """
    if not err.is_terminal:
        with _json_lines() as report:
            yield report
        return
    with _bar() as bar:
        task = bar.add_task("encoding", total=None)

        def report_state(state: Any) -> None:
            text = f"encoding, {state.images_per_s:,.0f} images/s, {state.rejects:,} rejects"
            if state.images_total is None:
                text += f", {state.images:,} images, units"
                bar.update(task, completed=state.units, total=state.units_total, description=text)
            else:
                bar.update(task, completed=state.images, total=state.images_total, description=f"{text}, images")

        yield report_state


@contextlib.contextmanager
def _json_lines() -> Iterator[Callable[[Any], None]]:
    latest: list[Any] = []
    ended = threading.Event()

    def write_line() -> None:
        if latest:
            typer.echo(json.dumps(_plain(latest[0])), err=True)

    def write_lines() -> None:
        while not ended.wait(_SECONDS_PER_LINE):
            write_line()

    thread = threading.Thread(target=write_lines, name="progress", daemon=True)
    thread.start()
    try:
        yield lambda state: latest.__setitem__(slice(None), [state])
    finally:
        ended.set()
        thread.join()
        write_line()


def _plain(state: Any) -> dict[str, Any]:
    eta = None if state.eta_s is None else round(state.eta_s, 1)
    names = ("images", "images_total", "units", "units_total", "rejects")
    numbers = {name: getattr(state, name) for name in names}
    return {"job": "encode", **numbers, "images_per_s": round(state.images_per_s, 1), "eta_s": eta}


@contextlib.contextmanager
def training_bar() -> Iterator[Callable[[int, int, Any], None]]:
    """Show a bar for each phase of training; yields a function of (step, steps, `encoders.training.train.Progress`)."""
    if not err.is_terminal:
        lines: dict[str, Callable[[int, int], None]] = {}
        yield lambda step, steps, state: lines.setdefault(state.phase, _plain_lines(state.phase))(step, steps)
        return
    with _bar() as bar:
        tasks: dict[str, TaskID] = {}

        def report(step: int, steps: int, state: Any) -> None:
            if state.phase not in tasks:
                tasks[state.phase] = bar.add_task(state.phase, total=steps)
            text = f"{state.phase}, loss {state.loss:.3f}, {state.images_per_s:.0f} images/s"
            if state.beta:
                text += f", beta {state.beta:.1f}, imbalance {state.imbalance:.0f}, balance {state.bit_balance:.2f}"
            bar.update(tasks[state.phase], completed=step, description=text)

        yield report


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err)


def _plain_lines(title: str) -> Callable[[int, int], None]:
    """Return a function of (done, total) that writes a line when it is done, and every ten seconds until then."""
    due = [time.monotonic() + _SECONDS_PER_LINE]

    def report(done: int, total: int) -> None:
        if done == total or time.monotonic() >= due[0]:
            err.print(f"{title}: {done:,} of {total:,}")
            due[0] = time.monotonic() + _SECONDS_PER_LINE

    return report


@contextlib.contextmanager
def spinner(title: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done on the standard error; yields a function that renames it."""
    with err.status(title) as status:
        yield status.update


def fetching_text(say: Callable[[str], None], title: str) -> Callable[[int, int], None]:
    """Return a function of bytes (done, total) that adds them to the title of a spinner."""

    def report(done: int, total: int) -> None:
        say(title if done == total else f"{title}: fetched {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    return report


def key_value_table(title: str, rows: dict[str, Any]) -> Table:
    """Make a table of two columns."""
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in rows.items():
        table.add_row(key, str(value))
    return table


def answers_table(hits: Sequence[Any]) -> Table:
    """Make a table of `engine.client.results.Hit`, one row each."""
    names = list(hits[0].attributes or {}) if hits else []
    table = Table("#", "distance", "id", *(Column(name, overflow="fold") for name in names))
    for rank, hit in enumerate(hits, start=1):
        table.add_row(str(rank), str(hit.distance), str(hit.id), *(str(hit.attributes[n]) for n in names))
    return table


def plan_table(lines: list[Any]) -> Table:
    """Make a table of `pipelines.capacity.plan.Line`: what, how much, and the arithmetic in two rows."""
    table = Table("", Column("", justify="right", no_wrap=True), Column("arithmetic", overflow="fold"))
    for line in lines:
        table.add_row(line.name, line.text, f"{line.formula}\n= {line.numbers}")
    return table
