"""Pages of the docs, read as a stranger would: their blocks of code, run one after another in a folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from hashlight.pipelines.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT)) for page in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)
_BLOCK = re.compile(r"(?:^<!-- (not run: .+?|output) -->\n)?^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_SERVER_S = 120


class Block(NamedTuple):
    """A block of code; `remark` is that of the comment above it, empty without one."""

    language: str
    text: str
    remark: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and not self.remark


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(language, code, remark, text[: found.start()].count("\n") + 1)
        for found in _BLOCK.finditer(text)
        for remark, language, code in [found.groups(default="")]
    ]


def commands_of(text: str) -> list[str]:
    """The commands of a shell's block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


class Reader:
    """Does in `folder` what a page says, block by block; what `hashlight serve` starts is ended by `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {}
        self.said = ""
        self._servers: list[subprocess.Popen[str]] = []
        self._port = "8000"

    def read(self, page: str) -> None:
        for block in blocks_of(page):
            if block.remark == "output":
                assert self.said.strip() == block.text.strip(), f"{page}, line {block.line}"
            elif block.runs:
                self.said = ""
                with contextlib.chdir(self.folder):
                    (self._python if block.language == "python" else self._bash)(page, block)

    def close(self) -> None:
        for server in self._servers:
            server.send_signal(signal.SIGTERM)
        for server in self._servers:
            server.communicate(timeout=_SERVER_S)

    def _python(self, page: str, block: Block) -> None:
        # Errors name the line of the page.
        code = compile("\n" * block.line + self._at_port(block.text), page, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, self.names)
        self.said = said.getvalue()

    def _bash(self, page: str, block: Block) -> None:
        for line in commands_of(self._at_port(block.text)):
            program, *words = shlex.split(line, comments=True)
            if program != "hashlight" or "|" in words:
                self._shell(line)
            elif words[0] == "serve":
                self._serve(words)
            else:
                done = CliRunner().invoke(app, words)
                assert done.exit_code == 0, (page, line, done.output)
                self.said += done.stdout

    def _shell(self, line: str) -> None:
        bash = shutil.which("bash")
        assert bash is not None
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [bash, "-euo", "pipefail", "-c", line], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)
        self.said += done.stdout

    def _serve(self, words: list[str]) -> None:
        command = [sys.executable, "-P", "-m", "hashlight", *words, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._servers.append(server)
        for line in server.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self._port = found[1]
                return
        raise AssertionError(f"{words} ended with {server.wait()}")

    def _at_port(self, text: str) -> str:
        return re.sub(r"(?<=localhost:)8000|(?<=127\.0\.0\.1:)8000", self._port, text)
