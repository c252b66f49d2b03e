"""Features are stored as float16: what it cannot hold is refused, and nothing turns into infinity in silence."""

import numpy as np
import pytest

from hashlight.pipelines.codes.parts import stored_features
from hashlight.pipelines.jobs.errors import PipelineError


@pytest.mark.parametrize("values", [[0.0, 65504.0], [-65504.0, 1e-8], [1 / 3, -2.5], []])
def test_what_float16_holds_is_rounded_to_it(values):
    stored = stored_features(np.array([values], np.float32)).packed
    assert stored.dtype == np.dtype("<f2")
    assert np.isfinite(stored).all()
    np.testing.assert_allclose(stored, [values], rtol=2**-11, atol=2**-24)


@pytest.mark.parametrize("bad", [70_000.0, -70_000.0, np.inf, np.nan])
def test_what_float16_cannot_hold_is_refused(bad):
    with pytest.raises(
        PipelineError, match=r"finite as float16, up to 65,504, .*: encode with another `--features-as`"
    ):
        stored_features(np.array([[1.0, 2.0], [3.0, bad]], np.float32))
