"""What is installed: the names, their types, the base and what the extras add to it."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import playwright.sync_api
import pytest
import yaml

import hashlight
from hashlight.engine.extras import EXTRAS, missing
from tests.pipelines.cli.test_demo import check_demo

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-",
    "ray": "ray[data]",
    "sklearn": "scikit-learn",
    "pydantic_core": "pydantic",
    "starlette": "fastapi",
}
# Runs a program in which no package of the extras can be imported; Typer itself may need pydantic.
WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(set(EXTRAS) - {"pydantic", "pydantic_core"})}))
"""


def run_without_extras(program, *arguments):
    command = [sys.executable, "-P", "-c", WITHOUT_EXTRAS + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_public_name_is_loaded_from_where_it_is_defined():
    for name in hashlight.__all__:
        assert name in dir(hashlight)
        value = getattr(hashlight, name)
        if name != "METHODS":
            assert value.__name__ == name
            assert value.__module__ == hashlight._MODULES[name]
    assert hashlight.METHODS["hashnet"].name == "hashnet"
    with pytest.raises(AttributeError, match="no attribute 'Milvus'"):
        hashlight.Milvus  # noqa: B018


def test_type_checkers_and_the_interpreter_read_the_same_names():
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(hashlight))) if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names if "." in node.module}
    del typed["missing"]
    assert typed == hashlight._MODULES
    assert sorted(typed) == sorted(hashlight.__all__)


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert hashlight.__version__ == PROJECT["version"] == cited["version"]
    assert cited["license"] == PROJECT["license"]
    assert re.search(r"^## \[Unreleased\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def test_every_error_that_is_raised_on_purpose_is_public():
    homes = ("engine.errors", "engine.client.errors", "encoders.errors", "pipelines.jobs.errors")
    for home in homes:
        module = importlib.import_module(f"hashlight.{home}")
        errors = {name for name, value in vars(module).items() if inspect.isclass(value) and name.endswith("Error")}
        assert errors
        assert errors <= set(hashlight.__all__), home


def test_importing_the_package_loads_nothing():
    program = """
import sys
before = set(sys.modules)
import hashlight
after = {name.partition(".")[0] for name in set(sys.modules) - before}
assert after - sys.stdlib_module_names == {"hashlight"}, after
from hashlight import Coverage, Hit, SearchClient, SearchResult
assert not {"torch", "ray", "faiss", "numba", "pyarrow", "PIL", "sklearn"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_public_name_without_its_extra_says_which():
    done = run_without_extras("from hashlight import train")
    assert "MissingDependencyError: `hashlight.train` needs torch, which is not installed" in done.stderr


def asked_for(extra):
    """The requirements of an extra, and of the extras that it includes."""
    for requirement in PROJECT["optional-dependencies"][extra]:
        if requirement.startswith("hashlight["):
            yield from asked_for(requirement.removeprefix("hashlight[").removesuffix("]"))
        else:
            yield requirement


@pytest.mark.parametrize("module", sorted(EXTRAS))
def test_the_named_extra_brings_the_module(module):
    distribution = DISTRIBUTIONS.get(module, module.replace("_", "-").lower())
    for extra in EXTRAS[module]:
        assert any(requirement.startswith(distribution) for requirement in asked_for(extra)), extra
    assert not any(requirement.startswith(distribution) for requirement in PROJECT["dependencies"])


def test_a_module_that_no_extra_brings_is_not_explained_away():
    assert missing(ModuleNotFoundError("No module named 'numpy'", name="numpy"), "it") is None
    assert missing(ModuleNotFoundError("without a name"), "it") is None
    told = missing(ModuleNotFoundError("No module named 'ray.data'", name="ray.data"), "it")
    assert str(told) == (
        "it needs ray, which is not installed: pip install 'hashlight[cpu]' or pip install 'hashlight[gpu]'"
    )


USE = """
import json, sys
import numpy as np
from hashlight import Collection, SearchClient
codes = np.array([[0b0000], [0b0001], [0b0111]], np.uint64)
Collection.create(sys.argv[1], codes, bits=16, attributes={"label": ["a", "b", "a"]})
opened = Collection.open(sys.argv[1])
opened.add(codes + np.uint64(8), attributes={"label": ["c", "c", "c"]})
found = Collection.open(sys.argv[1]).search(codes[:1], k=4)
with SearchClient(sys.argv[1]) as client:
    answer = client.search(codes[0], k=2, filter='label == "a"', include=["attributes", "explain"])
print(json.dumps([found.distances.tolist(), [[hit.distance, hit.attributes] for hit in answer[0]]]))
"""


def check_use(done):
    assert done.returncode == 0, done.stderr
    nearest, labelled = json.loads(done.stdout)
    assert nearest == [[0, 1, 1, 2]]
    assert labelled == [[0, {"label": "a"}], [3, {"label": "a"}]]


def test_the_base_makes_opens_and_searches_a_collection(tmp_path):
    check_use(run_without_extras(USE, tmp_path / "c"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "--wheel", "--sdist", "--outdir", folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def build(source, *arguments):
    command = [sys.executable, "-P", "-m", "build", "--no-isolation", *map(str, arguments)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_one_package_and_its_types(built):
    names = set(files_of(built[0]))
    assert {name.partition("/")[0] for name in names} == {"hashlight", "hashlight-0.1.0.dist-info"}
    assert "hashlight/py.typed" in names
    for folder in ("engine", "encoders", "pipelines"):
        here = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        expected = {f"hashlight/{path}" for path in here if "__pycache__" not in path.parts}
        assert expected == {name for name in names if name.startswith(f"hashlight/{folder}/")}


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    build(tmp_path / "hashlight-0.1.0", "--wheel", "--outdir", tmp_path)
    assert files_of(tmp_path / wheel.name) == files_of(wheel)


VERBS = {
    "train": (["--input", ".", "--output", "e"], None, "cpu"),
    "encode": (["--input", ".", "--encoder", ".", "--output", "c"], None, "cpu"),
    "serve": (["c"], "uvicorn", "serve"),
    "gateway": (["--shards", "dns:///shard:1", "--groups", "1"], "prometheus_client", "serve"),
    "evaluate": (["--encoder", ".", "--database", ".", "--queries", ".", "--output", "r"], None, "cpu"),
    "demo": ([], None, "cpu"),
}
RUN = "from hashlight.pipelines.cli.main import main; main()"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_its_extra_says_which(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").mkdir()
    arguments, module, extra = VERBS[verb]
    done = run_without_extras(RUN, verb, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: `hashlight {verb}` needs {module or ''}")
    assert f"pip install 'hashlight[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_base_shows_help():
    done = run_without_extras(RUN, "--help")
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert verb in done.stdout


@pytest.fixture(scope="module")
def base(built, tmp_path_factory):
    """Runs programs in an environment outside the checkout with the wheel and what it requires, but no extra."""
    folder = tmp_path_factory.mktemp("base")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command, check=True):
        command = [folder / "bin" / command[0], *map(str, command[1:])]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=check)

    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    run("python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", built[0])
    return run


HEAVY = {"torch", "torchvision", "ray", "faiss-cpu", "faiss-gpu", "scikit-learn", "scipy", "matplotlib", "pandas"}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to install the base, and again to compile its kernels
def test_the_base_installs_nothing_heavy_and_works(base, tmp_path):
    listed = json.loads(base("python", "-m", "pip", "list", "--format", "json").stdout)
    names = {package["name"].lower() for package in listed}
    assert "hashlight" in names
    assert not HEAVY & names
    check_use(base("python", "-c", USE, tmp_path / "c"))
    assert "train" in base("hashlight", "--help").stdout
    assert json.loads(base("hashlight", "info", tmp_path / "c", "--json").stdout)["codes"] == 6
    told = base("hashlight", "train", "--input", tmp_path, "--output", "e", check=False)
    assert told.returncode == 1
    assert told.stderr == (
        "error: `hashlight train` needs Pillow, which is not installed: pip install 'hashlight[cpu]' or "
        "pip install 'hashlight[gpu]' or pip install 'hashlight[onnxruntime]'\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to install the base, and again to compile its kernels
def test_the_base_asks_a_server(base, tmp_path):
    base("python", "-c", USE, tmp_path / "c")
    command = [sys.executable, "-P", "-m", "hashlight", "serve", str(tmp_path / "c"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"at (http://\S+)", server.stdout.readline())[1]
        program = (
            "import sys, hashlight; print(hashlight.SearchClient(sys.argv[1]).search(2, k=2)[0].distances.tolist())"
        )
        assert json.loads(base("python", "-c", program, url).stdout) == [0, 1]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


@pytest.fixture(scope="module")
def wheel_alone(built, tmp_path_factory):
    """The programs of an environment with the wheel, and with the packages of this one but for the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(packages)
    here = {path for path in sys.path if Path(path).name == "site-packages"}
    # A `.pth` file within them, which is how the checkout is installed, is not read.
    (packages / "others.pth").write_text("\n".join(sorted(here)))
    program = folder / "bin" / "hashlight"
    program.write_text(f"#!{folder}/bin/python\nfrom hashlight.pipelines.cli.main import main\nmain()\n")
    program.chmod(0o755)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.timeout(3600)  # the demo takes six minutes where nothing else runs
def test_the_wheel_alone_runs_the_demo_and_shows_the_page(wheel_alone, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    where = [wheel_alone / "python", "-c", "import hashlight; print(hashlight.__file__)"]
    imported = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(imported.strip()).is_relative_to(wheel_alone.parent)
    demo = [wheel_alone / "hashlight", "demo", "--output", "demo"]
    done = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check_demo(tmp_path / "demo")
    serve = [wheel_alone / "hashlight", "serve", "demo/drawings-collection", "--port", "0"]
    server = subprocess.Popen(serve, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"at (http://\S+)", server.stdout.readline())[1]
        check_page(url)
        with hashlight.SearchClient(url) as client:
            assert client.search(tmp_path / "demo" / "drawings" / "car.png", k=3)[0][0].distance == 0
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


def check_page(url):
    """All that the page loads is there, and nothing of it fails."""
    with playwright.sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, failed, answered = browser.new_page(), [], []
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        page.on("response", lambda response: answered.append(response))
        page.goto(url, wait_until="networkidle")
        assert "Hashlight" in page.title()
        assert {response.status for response in answered} <= {200, 304}
        assert any(response.url.endswith(".js") for response in answered)
        assert failed == []
        browser.close()


USER = """
import numpy as np
from hashlight import Collection, Coverage, Hit, Rerank, SearchClient, SearchResult

collection = Collection.open("photos")
found = collection.search(np.zeros((1, 1), np.uint64), k=3)
reveal_type(found)
with SearchClient("http://localhost:8000") as client:
    reveal_type(client.search("shoe.jpg", rerank=Rerank(pool=9))[0][0])
    reveal_type(client.search("shoe.jpg").coverage)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to install the base, and again to compile its kernels
def test_type_checkers_see_the_types_of_the_installed_package(base, tmp_path):
    (tmp_path / "user.py").write_text(USER)
    python = json.loads(base("python", "-c", "import json, sys; print(json.dumps(sys.executable))").stdout)
    command = [sys.executable, "-P", "-m", "mypy", "--strict", "--python-executable", python, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert [kind.rpartition("fallback=")[2].rstrip("]").rpartition(".")[2] for kind in revealed] == [
        "SearchResult",
        "Hit",
        "Coverage",
    ]
