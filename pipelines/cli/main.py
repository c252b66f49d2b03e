"""The command `hashlight`.

Exit codes: 0 done, 1 failed, 2 wrong usage. Errors are one line on the standard error; `hashlight --debug COMMAND ...`
shows where they came from. The packages a command needs are imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from hashlight.pipelines.cli.errors import Command, command_name, report_errors, show_tracebacks
from hashlight.pipelines.cli.grouping import expand_groups
from hashlight.pipelines.cli.keeping.add import add
from hashlight.pipelines.cli.keeping.compact import compact
from hashlight.pipelines.cli.keeping.delete import delete
from hashlight.pipelines.cli.keeping.prune import prune
from hashlight.pipelines.cli.keeping.rollback import rollback
from hashlight.pipelines.cli.keeping.tag import tag
from hashlight.pipelines.cli.keeping.update import set_column, update
from hashlight.pipelines.cli.keeping.verify import verify
from hashlight.pipelines.cli.keeping.versions import versions
from hashlight.pipelines.cli.machine.calibrate import calibrate
from hashlight.pipelines.cli.machine.doctor import doctor
from hashlight.pipelines.cli.machine.size import size
from hashlight.pipelines.cli.machine.warmup import warmup
from hashlight.pipelines.cli.making.build import build
from hashlight.pipelines.cli.making.demo import demo
from hashlight.pipelines.cli.making.encode import encode
from hashlight.pipelines.cli.making.import_ import import_
from hashlight.pipelines.cli.making.index import index
from hashlight.pipelines.cli.making.list_ import list_
from hashlight.pipelines.cli.making.train import train
from hashlight.pipelines.cli.using.count import count
from hashlight.pipelines.cli.using.dedup import dedup
from hashlight.pipelines.cli.using.evaluate import evaluate
from hashlight.pipelines.cli.using.export import export
from hashlight.pipelines.cli.using.facets import facets
from hashlight.pipelines.cli.using.gateway import gateway
from hashlight.pipelines.cli.using.info import info
from hashlight.pipelines.cli.using.scale import scale
from hashlight.pipelines.cli.using.search import search
from hashlight.pipelines.cli.using.serve import serve
from hashlight.pipelines.cli.using.shard_server import shard_server

# In the order of `hashlight --help`.
VERBS = (
    index,
    train,
    list_,
    encode,
    build,
    import_,
    search,
    dedup,
    evaluate,
    count,
    facets,
    info,
    export,
    add,
    delete,
    update,
    set_column,
    compact,
    versions,
    tag,
    rollback,
    prune,
    verify,
    serve,
    shard_server,
    gateway,
    scale,
    warmup,
    calibrate,
    doctor,
    size,
    demo,
)

app = typer.Typer(
    help="Finds images among billions by learned binary codes, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in VERBS:
    app.command(command_name(_verb), cls=Command)(report_errors(expand_groups(_verb)))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hashlight {version('hashlight')}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    show_tracebacks(debug)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
