"""The docs are true: examples run, links and pictures are there, every promise on resilience names tests that exist."""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import hashlight
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.corpora.drawings import write_drawings
from hashlight.pipelines.corpora.fashion_mnist import SAMPLE
from tests.pages import PAGES, ROOT, Reader, blocks_of, commands_of

from .pipelines.corpora.layouts import add, png, write_img2dataset

IMAGES = ROOT / "docs" / "images"
# Pages that are read by tests elsewhere, or below in their own way.
READ_ELSEWHERE = {
    "docs/corpora.md": "tests/test_docs.py",
    "docs/deploying.md": "tests/deploy/test_cluster.py",
}


@pytest.mark.parametrize(
    "module",
    ["hashlight.engine.client.client", "hashlight.engine.collection.collection", "hashlight.engine.filters.filter"],
)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


def nothing(folder):
    """Make no file: the page makes all that it needs."""


def pictures(folder, count=60):
    """Drawings in two sub-folders, of which some are there a second time, and one to ask with."""
    write_drawings(folder / "all")
    for number, path in enumerate(sorted((folder / "all").iterdir())[:count]):
        kept = folder / "pictures" / ("birds" if number % 2 else "others") / path.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, kept)
        if number % 20 == 0:
            with Image.open(kept) as image:
                image.convert("RGB").reduce(2).save(kept.with_name(f"{kept.stem}-small.jpg"), quality=60)
        if number == 7:
            shutil.copy(kept, folder / "query.png")


def many_pictures(folder):
    """More of them than the bits that are fitted to them."""
    pictures(folder, 160)


def labelled(folder):
    """120 small grey images in folders of their classes, and one to ask with."""
    rows = pq.read_table(SAMPLE).slice(0, 120).to_pylist()
    for number, row in enumerate(rows):
        path = folder / "labelled" / f"class{row['label']}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    (folder / "query.png").write_bytes(rows[3]["image"])


# The pages that a stranger reads one after another, each in the folder that those before it have left.
TOURS = {
    "embeddings": (nothing, ["docs/embeddings.md"]),
    "keeping": (nothing, ["docs/living-collection.md"]),
    "exactness": (nothing, ["docs/exactness.md"]),
    "training": (labelled, ["docs/training.md"]),
    "code": (nothing, ["docs/tutorial.md"]),
}


# The same, of many pictures.
LONG_TOURS = {
    "pictures": (pictures, ["README.md", "docs/your-images.md", "docs/duplicates.md"]),
    "getting started": (nothing, ["docs/getting-started.md"]),
    "choosing": (many_pictures, ["docs/choosing.md"]),
}


@pytest.mark.parametrize("tour", TOURS)
@pytest.mark.usefixtures("ray_session")
def test_every_block_of_the_pages_runs(tour, tmp_path):
    take(*TOURS[tour], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("tour", LONG_TOURS)
@pytest.mark.usefixtures("ray_session")
def test_every_block_of_the_long_pages_runs(tour, tmp_path):
    take(*LONG_TOURS[tour], tmp_path)


def take(prepare, pages, folder):
    prepare(folder)
    with contextlib.closing(Reader(folder)) as reader:
        for page in pages:
            reader.read(page)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    read = {page for _, pages in [*TOURS.values(), *LONG_TOURS.values()] for page in pages} | READ_ELSEWHERE.keys()
    for block in blocks_of(page):
        where = f"{page}, line {block.line}"
        assert block.language in {"bash", "python", "json", "text", "yaml"}, where
        if block.language in ("bash", "python"):
            assert page in read or block.remark.startswith("not run: "), where
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text), where
        else:
            assert not re.search(r"^(hashlight|curl|pip|python|make|kubectl|helm) ", block.text, re.MULTILINE), where


@functools.cache
def usage_of(verb):
    """The options of a command."""
    usage = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
    assert usage.exit_code == 0, usage.output
    return set(re.findall(r"(?<!\S)--?[a-z]+(?:-[a-z]+)*", usage.output))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_exists(page):
    for block in blocks_of(page):
        if block.language == "bash":
            for line in commands_of(block.text):
                for verb, words in re.findall(r"(?:^|[|&;] *)hashlight ([a-z-]+)([^|&;#]*)", line):
                    for option in re.findall(r"(?<!\S)--?[a-z]+(?:-[a-z]+)*", words):
                        assert option in usage_of(verb), (page, line, option)


def corpora_of_the_page(folder):
    """Make the corpora that docs/corpora.md lists; return how many images each list has, None for tars."""
    (folder / "photos" / "cats").mkdir(parents=True)
    (folder / "photos" / "cats" / "a.png").write_bytes(png(1))
    (folder / "photos" / "b.png").write_bytes(png(2))
    (folder / "about.csv").write_text("picture,note\na,first\n")
    shutil.copytree(folder / "photos", folder / "imagefolder")
    (folder / "imagefolder" / "metadata.csv").write_text("file_name,label\ncats/a.png,tabby\n")
    for name, layout in (("laion-files", "files"), ("laion-tars", "webdataset"), ("laion-parquet", "parquet")):
        write_img2dataset(folder / name, layout)
    for name, table in {
        "hugging-face/train.parquet": pa.table({"img": [{"bytes": png(1), "path": "a.png"}] * 3, "label": [0, 1, 0]}),
        "laion-metadata/part.parquet": pa.table(
            {"URL": ["https://example.org/a.jpg", None], "TEXT": ["a", "b"], "similarity": [0.3, 0.4]}
        ),
        "others.parquet": pa.table({"photo": [png(1)], "species": ["x"], "image": ["a.png"]}),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, folder / name)
    shutil.copytree(folder / "photos", folder / "pictures")
    (folder / "pictures" / "list.csv").write_text("file_name,label\nb.png,x\ncats/a.png,y\n")
    (folder / "pictures" / "list.jsonl").write_text('{"path": "b.png", "asset": 7, "class": "x"}\n')
    (folder / "pictures" / "list.txt").write_text("b.png\ncats/a.png\n")
    (folder / "pictures" / "labelled.txt").write_text("b.png 0 1 0\ncats/a.png 1 1 0\n")
    notes = [{"image_id": 3, "category_id": 1}]
    images = [{"id": 3, "file_name": "b.png"}, {"id": 4, "file_name": "cats/a.png"}]
    found = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "pictures" / "instances.json").write_text(json.dumps(found))
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "0.tar.gz", "w:gz") as tar:
        add(tar, "0.png", png(1))
        add(tar, "0.json", b'{"class": "x", "width": 4}')
    return {
        "photos": 2, "imagefolder": 2, "laion-files": 6, "laion-tars": None, "laion-parquet": 6, "hugging-face": 3,
        "laion-metadata": 1, "others": 1, "csv": 2, "jsonl": 1, "txt": 2, "tars": None, "joined": 2, "together": 3,
        "labelled": 2, "coco": 1, "joined-coco": 2,
    }  # fmt: skip


def test_every_corpus_of_the_page_is_listed(tmp_path, monkeypatch, ray_session):
    expected = corpora_of_the_page(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", Path("docs/corpora.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == len(expected)
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "hashlight"
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, (line, done.output)
        name = arguments[arguments.index("--output") + 1].removesuffix(".arrow")
        assert json.loads(done.stdout)["images"] == expected.pop(name), line
    assert not expected


def test_every_promise_is_kept_by_tests_that_exist():
    page = Path("docs/resilience.md").read_text()
    promises = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(promises) > 60
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
        assert named, promise
        for path, name in named:
            assert f"def {name}" in Path(path).read_text(), promise


def test_every_link_within_the_repository_leads_somewhere():
    pages = [*PAGES, "SECURITY.md", "CHANGELOG.md", "benchmarks/LEADERBOARD.md"]
    found = 0
    for page in pages:
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", (ROOT / page).read_text()):
            if not re.match(r"[a-z]+:", target) and target not in ("commands.md", "http-api.md"):
                assert (ROOT / page).parent.joinpath(target).exists(), (page, target)
                found += 1
    assert found > 100


def test_every_picture_is_shown_and_has_its_script():
    shown = {
        Path(link).name for page in PAGES for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / page).read_text())
    }
    assert shown == {path.name for path in IMAGES.iterdir()}
    sys.path.insert(0, str(ROOT / "docs" / "scripts"))
    try:
        drawn = runpy.run_path(str(ROOT / "docs" / "scripts" / "draw.py"))["pictures"]()
    finally:
        sys.path.pop(0)
    for name, text in drawn.items():
        assert (IMAGES / name).read_text() == text, f"{name}: run python docs/scripts/draw.py"
    # The first is what `hashlight demo` draws, the second what a script takes of a running server.
    assert shown - drawn.keys() == {"answers.png", "page.png"}
    assert '"page.png"' in (ROOT / "docs" / "scripts" / "page_picture.py").read_text()


def test_every_public_name_is_on_the_page_of_the_python_api():
    page = (ROOT / "docs" / "python-api.md").read_text()
    for name in hashlight.__all__:
        module = hashlight._MODULES[name]
        whole_module = re.search(rf"^::: {re.escape(module)}\n((?:    .*\n)*)", page, flags=re.MULTILINE)
        members = re.search(r"members: \[(.*)\]", whole_module[1]) if whole_module else None
        listed = name in members[1].split(", ") if members else whole_module is not None
        assert listed or f"::: {module}.{name}\n" in page, name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_asks_nobody_else_for_anything(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\"\s>]+)", text)
        loaded += re.findall(
            r"<link[^>]*rel=\"?(?:stylesheet|preload|preconnect|icon)\"?[^>]*href=\"?([^\"\s>]+)", text
        )
        assert loaded
        assert not [address for address in loaded if re.match(r"(?:https?:)?//", address)], page


def test_the_site_has_what_is_made_from_the_code(site):
    api = (site / "http-api" / "index.html").read_text()
    for path in ("/v1/search", "/v1/items/{id}", "/health/ready"):
        assert path in api
    python = (site / "python-api" / "index.html").read_text()
    for name in ("engine.collection.collection.Collection.to_faiss", "encoders.encoder.HashEncoder.encode_all"):
        assert f'id="hashlight.{name}"' in python
    commands = (site / "commands" / "index.html").read_text()
    assert "<code>--max-rejects</code>" in commands
