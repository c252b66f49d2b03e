"""Run the command line: `python -m hashlight`."""

from hashlight.pipelines.cli.main import main

main()
