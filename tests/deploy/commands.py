"""Command lines, parsed by the real command line, which does not run them."""

from __future__ import annotations

import typer

from hashlight.pipelines.cli.main import app

COMMANDS = typer.main.get_command(app).commands
[UsageError] = typer.BadParameter.__bases__  # Typer's, which has Click within it, or Click's


def parse(words, root):
    """Parse a command line; return the value of each option by its name, `--port`, and of each argument by its own.

    Files and folders that it names by an absolute path are made below `root`, since options refuse what is missing.

    Raises
    ------
    UsageError
        If the command line would refuse it.
    """
    if words[0] not in COMMANDS:
        raise UsageError(f"there is no command {words[0]}")
    command = COMMANDS[words[0]]
    files = {option for parameter in command.params if parameter.metavar == "FILE" for option in parameter.opts}
    made, option = [], ""
    for word in words[1:]:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if value.startswith("/"):
            place = root / value[1:]
            if (name or option) in files:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("")
            else:
                place.mkdir(parents=True, exist_ok=True)
            value = str(place)
        made.append(f"{name}{equals}{value}")
        option = word if word.startswith("--") else ""
    context = command.make_context(words[0], made)
    return {
        option: context.params[parameter.name]
        for parameter in command.params
        for option in (parameter.opts if parameter.param_type_name == "option" else [parameter.name])
        if parameter.name in context.params
    }
