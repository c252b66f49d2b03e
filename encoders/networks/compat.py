"""The only place that imports torchvision.

torchvision's wheels link their compiled operators to CUDA. With a CPU-only torch the operators do not load, and
`import torchvision` fails in `torchvision._meta_registrations`, which describes operators that do not exist
("operator torchvision::nms does not exist"). An empty module in its place is enough for models and transforms;
the compiled operators (nms, roi_align, the JPEG decoder) stay missing, but nothing here needs them.

Replace this module by a plain `import torchvision` once torchvision skips those registrations when its
operators are not loaded, or publishes wheels for CPU-only torch on PyPI.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
import warnings
from typing import Any

_REGISTRATIONS = "torchvision._meta_registrations"


@functools.cache
def load_torchvision() -> Any:
    """Import torchvision, without its compiled operators if they do not load.

    Returns
    -------
    module
        `torchvision`, with `torchvision.models` and `torchvision.transforms` ready.
    """
    with warnings.catch_warnings():
        # The missing image extension warns at import; Pillow decodes images here.
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as exc:
            if "torchvision::" not in str(exc):
                raise
        _forget_torchvision()
        sys.modules[_REGISTRATIONS] = types.ModuleType(_REGISTRATIONS)
        return importlib.import_module("torchvision")


def _forget_torchvision() -> None:
    """Remove what the failed import left behind, so that the next one starts from scratch."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
