"""Exact gradients of a loss over a batch that is too large to be held as a graph.

A loss of pairs cannot be added up over small batches: pairs across them would be lost. So the outputs of the whole
batch are computed without a graph, the loss and its gradient with respect to these outputs are taken over all pairs,
and then each chunk is run again, with a graph, to carry its part of that gradient back to the weights. Memory is that
of one chunk, time that of one more forward pass (Gao et al., "Scaling deep contrastive learning batch size under memory
limited setup", 2021). Batch normalisation sees chunks, not the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

Network = Callable[[torch.Tensor], torch.Tensor]


def backward(
    network: Network,
    image_BCHW: torch.Tensor,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    chunk_size: int | None = None,
    owner: nn.Module,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradient of `loss_of(network(image_BCHW))` to every weight.

    Parameters
    ----------
    network : callable
        Maps images to outputs (B, K).
    image_BCHW : Tensor
    loss_of : callable
        Maps the outputs of the whole batch, as float32, to a loss. Its own weights get their gradient too.
    chunk_size : int, optional
        Images of a pass; the whole batch if left out.
    owner : nn.Module
        Whose buffers (running statistics) the passes of `network` change; they change once a chunk.

    Returns
    -------
    loss : Tensor, shape ()
    output_BK : Tensor of float32, shape (B, K)
        Both without a graph.
    """
    chunks = torch.split(image_BCHW, chunk_size or len(image_BCHW))
    if len(chunks) == 1:
        output_BK = network(image_BCHW).float()
        loss = loss_of(output_BK)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), output_BK.detach()
    with torch.no_grad(), _kept_buffers(owner):
        states, outputs = zip(*((_random_state(chunk), network(chunk).float()) for chunk in chunks), strict=True)
    after = _random_state(image_BCHW)
    output_BK = torch.cat(outputs).requires_grad_()
    loss = loss_of(output_BK)
    loss.backward()  # type: ignore[no-untyped-call]
    assert output_BK.grad is not None
    for chunk, state, gradient in zip(chunks, states, torch.split(output_BK.grad, len(chunks[0])), strict=True):
        # The same dropout as in the first pass.
        _set_random_state(state)
        network(chunk).float().backward(gradient)  # type: ignore[no-untyped-call]
    _set_random_state(after)
    return loss.detach(), output_BK.detach()


@contextlib.contextmanager
def _kept_buffers(owner: nn.Module) -> Iterator[None]:
    """Put running statistics back afterwards."""
    kept = [buffer.clone() for buffer in owner.buffers()]
    yield
    for buffer, value in zip(owner.buffers(), kept, strict=True):
        buffer.copy_(value)


def _random_state(image_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    device = image_BCHW.device
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
