"""Exact gradients of a loss over a batch whose graph does not fit into memory.

A pairwise loss cannot be summed over small batches, because pairs across batches would be lost. So the outputs of the
whole batch are computed without a graph, then the loss over all pairs and its gradient with respect to these outputs,
and then each chunk is run again, with a graph, to propagate its part of that gradient to the weights. This needs the
memory of one chunk and the time of one more forward pass (Gao et al., "Scaling deep contrastive learning batch size
under memory limited setup", 2021). Batch normalisation sees chunks, not the batch.

Several workers share a batch in the same way: each runs its own images, and the loss covers the outputs of all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from hashlight.encoders.training.workers import ALONE, Share, random_state, set_random_state

Network = Callable[[torch.Tensor], torch.Tensor]


def backward(
    network: Network,
    image_BCHW: torch.Tensor,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    chunk_size: int | None = None,
    owner: nn.Module,
    share: Share | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradient of `loss_of(network(image_BCHW))` to every weight.

    Parameters
    ----------
    network : callable
        Maps images to outputs (B, K).
    image_BCHW : Tensor
    loss_of : callable
        Maps the outputs of the whole batch, in at least float32, to a loss. Its own weights get their gradient too.
    chunk_size : int, optional
        Number of images in a pass; by default the whole batch.
    owner : nn.Module
        The module whose buffers (running statistics) `network` updates; they are updated once for each chunk.
    share : Share, optional
        Which images of the batch `image_BCHW` holds, if several workers share it; the share then defines the chunks.
        Each worker gets the gradient that its own images contribute to the network's weights.

    Returns
    -------
    loss : Tensor, shape ()
    output_BK : Tensor, shape (B, K)
        Both without a graph.
    """
    share = share or ALONE.share(len(image_BCHW), chunk_size)
    chunks, device = share.split(image_BCHW), image_BCHW.device
    if len(chunks) == 1:
        with share.passing(0, device):
            output_bK = _at_least_float32(network(image_BCHW))
        loss, output_BK, gradient_BK = _loss_and_gradient(share.gather([output_bK]), loss_of)
        output_bK.backward(share.own(gradient_BK))  # type: ignore[no-untyped-call]
        return loss, output_BK
    with torch.no_grad(), _kept_buffers(owner):
        states, outputs = [], []
        for number, chunk in enumerate(chunks):
            states.append(random_state(device))
            with share.passing(number, device):
                outputs.append(_at_least_float32(network(chunk)))
    after = random_state(device)
    loss, output_BK, gradient_BK = _loss_and_gradient(share.gather(outputs), loss_of)
    gradients = share.split(share.own(gradient_BK))
    for number, (chunk, state, gradient) in enumerate(zip(chunks, states, gradients, strict=True)):
        # Repeat the dropout of the first pass.
        set_random_state(state, device)
        with share.passing(number, device):
            output_bK = _at_least_float32(network(chunk))
        output_bK.backward(gradient)  # type: ignore[no-untyped-call]
    set_random_state(after, device)
    return loss, output_BK


def _loss_and_gradient(
    output_BK: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss, the outputs and the loss's gradient with respect to them."""
    output_BK.requires_grad_()
    loss = loss_of(output_BK)
    loss.backward()  # type: ignore[no-untyped-call]
    assert output_BK.grad is not None
    return loss.detach(), output_BK.detach(), output_BK.grad


def _at_least_float32(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


@contextlib.contextmanager
def _kept_buffers(owner: nn.Module) -> Iterator[None]:
    """Restore running statistics on exit."""
    kept = [buffer.clone() for buffer in owner.buffers()]
    yield
    for buffer, value in zip(owner.buffers(), kept, strict=True):
        buffer.copy_(value)
