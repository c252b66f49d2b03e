"""The quality of codes during training, on validation images.

Shapes: V validation images, K bits.
"""

from __future__ import annotations

import numpy as np
import torch

from hashlight.encoders.data.supervision.protocol import VIEWS, Supervision
from hashlight.encoders.metrics import average_precision_of_scores


def hold_out(supervision: Supervision, num_images: int, seed: int) -> tuple[Supervision, torch.Tensor]:
    """Draw validation images; return the supervision of the others, and the positions of the drawn ones.

    For views each image is listed twice, so that one view has to find the other.

    Raises
    ------
    ValueError
        If more than half of the images would be held out, no two of them are similar, or the supervision cannot be
        split.
    """
    if num_images > supervision.num_images // 2:
        raise ValueError(
            f"`validation_images` must be at most half of {supervision.num_images} images, got {num_images}"
        )
    order_N = torch.randperm(supervision.num_images, generator=torch.Generator().manual_seed(seed))
    kept_V = order_N[:num_images].sort().values
    index_V = torch.cat([kept_V, kept_V]) if supervision.kind == VIEWS else kept_V
    others = supervision.restricted_to(order_N[num_images:].sort().values)
    similar_VV = supervision.pairs_within(index_V)[0]
    if not (similar_VV & ~torch.eye(len(index_V), dtype=torch.bool)).any():
        raise ValueError(f"`validation_images` must include two similar images, the {num_images} drawn do not")
    return others, index_V


def validation_map(z_VK: torch.Tensor, supervision: Supervision, index_V: torch.Tensor) -> float:
    """Mean average precision when each image ranks all others, ties averaged; nan if no image has a similar one."""
    code_VK = np.where(z_VK.numpy() > 0, np.float32(1), np.float32(-1))
    similar_VV = supervision.pairs_within(index_V)[0].numpy()
    other_VV = ~np.eye(len(code_VK), dtype=np.bool_)
    shape = (len(code_VK), len(code_VK) - 1)
    precision_V = average_precision_of_scores(
        (code_VK @ code_VK.T)[other_VV].reshape(shape), similar_VV[other_VV].reshape(shape)
    )
    defined = precision_V[~np.isnan(precision_V)]
    return float(defined.mean()) if len(defined) else float("nan")
