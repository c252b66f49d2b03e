"""Several processes that train one model as a single process would.

All run the same loop over the same batches, and each passes its share of a batch's images through the network. Three
things still cover the whole batch:

- The loss: the outputs of all workers are gathered before it. Each worker then keeps the gradient of its own outputs,
  and the gradients of the weights are summed, not averaged, because all workers compute the same one loss.
- Batch normalisation: means and variances are gathered. `torch.nn.SyncBatchNorm` works on GPUs only.
- Random numbers: dropout and augmentation draw for the whole batch and a worker uses the rows of its own images, so
  that all generators stay in step with those of the plain loop.

`encoders.training.whole_batch` does the last two. Only the order of floating-point additions differs.
Shapes: B images of a batch, b of them this worker's, K bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from hashlight.encoders.training.whole_batch import BatchNorm, Draws

T = TypeVar("T")


class Workers:
    """The processes of the default group of `torch.distributed`, or this process alone.

    Parameters
    ----------
    rank, size : int
        Index of this process, and the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def of_process_group(cls) -> Workers:
        """Return the workers of the process group that this process has joined."""
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this worker writes and reports."""
        return self.rank == 0

    def share(self, num_images: int, chunk_size: int | None = None) -> Share:
        """Return this worker's part of a batch; the batch is cut into chunks first, then each chunk among workers."""
        return Share(self, num_images, chunk_size)

    def from_first(self, value: T) -> T:
        """Return the first worker's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def copy_first(self, *modules: nn.Module) -> None:
        """Give the modules the first worker's weights; a different kind of machine may draw different ones."""
        if self.size > 1:
            for module in modules:
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def add_gradients(self, shared: nn.Module, repeated: nn.Module) -> None:
        """Sum the gradients of all workers.

        Parameters
        ----------
        shared : nn.Module
            Each worker has a part of its gradients.
        repeated : nn.Module
            Every worker has its whole gradients; averaging them keeps the workers identical to the last bit.
        """
        if self.size == 1:
            return
        whole = [weight.grad for weight in repeated.parameters() if weight.grad is not None]
        for gradient in whole:
            gradient /= self.size
        gradients = whole + [weight.grad for weight in shared.parameters() if weight.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, parts, strict=True):
            gradient.copy_(total.view(gradient.shape))


ALONE = Workers()


class Share:
    """The images of one batch that one worker passes through the network.

    Parameters
    ----------
    workers : Workers
    num_images : int
        B.
    chunk_size : int or None
        Number of images that all workers together pass at a time; None is the whole batch.

    Attributes
    ----------
    own_b : Tensor of int64, shape (b,)
        Positions of this worker's images in the batch.
    num_chunks : int
    """

    def __init__(self, workers: Workers, num_images: int, chunk_size: int | None):
        self._workers = workers
        self._num_images = num_images
        chunks = torch.split(torch.arange(num_images), chunk_size or max(num_images, 1))
        self._parts = [torch.tensor_split(chunk, workers.size) for chunk in chunks]
        self.num_chunks = len(self._parts)
        self.own_b = torch.cat([parts[workers.rank] for parts in self._parts])

    def split(self, row_b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split rows of this worker's images by chunk."""
        return torch.split(row_b, [len(parts[self._workers.rank]) for parts in self._parts])

    def gather(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the outputs (B, K) of the whole batch, given this worker's by chunk; without a graph."""
        output_bK = torch.cat(list(outputs)).detach()
        if self._workers.size == 1:
            return output_bK
        output_BK = output_bK.new_zeros(self._num_images, *output_bK.shape[1:])
        output_BK[self.own_b] = output_bK
        dist.all_reduce(output_BK)
        return output_BK

    def own(self, row_B: torch.Tensor) -> torch.Tensor:
        """Return the rows of this worker's images."""
        return row_B if self._workers.size == 1 else row_B[self.own_b]

    def draws(self) -> contextlib.AbstractContextManager[object]:
        """Within this context, random numbers are drawn for the whole batch, and this worker gets its rows."""
        if self._workers.size == 1:
            return contextlib.nullcontext()
        return Draws(self.own_b, self._num_images)

    @contextlib.contextmanager
    def passing(self, number: int, device: torch.device) -> Iterator[None]:
        """Within this context, the network's statistics and random numbers cover all workers' images of a chunk.

        Parameters
        ----------
        number : int
            Of the chunk.
        device : torch.device
            Where the network is.
        """
        if self._workers.size == 1:
            yield
            return
        parts = self._parts[number]
        own_b = parts[self._workers.rank] - parts[0][0]
        counts = [len(part) for part in parts]
        with Draws(own_b, sum(counts)), BatchNorm(self._workers.rank, counts):
            yield
        if 0 in counts:
            # For dropout on zero images torch draws nothing, so that generator would fall behind.
            set_random_state(self._workers.from_first(random_state(device)), device)


def random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the random state of the CPU and, if `device` is a GPU, of that GPU.

    Other GPUs are left out, because other workers may be using them.
    """
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    """Restore a random state."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def forked_random(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Restore the random state of the CPU and of `device` on exit, so that it may be seeded within."""
    if device.type != "cuda":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[torch.cuda.current_device() if device.index is None else device.index])
