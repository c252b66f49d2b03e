"""Several processes that train one model as one process would.

All run the same loop over the same batches, and each takes its part of a batch's images through the network. What a
plain loop would see of the whole batch, all of them see:

- the loss, because the outputs of the whole batch are gathered before it. Each worker then keeps the gradient of its
  own outputs, and the gradients of the weights are added up: not averaged, as the loss is one already.
- batch normalisation, whose means and variances are gathered. `torch.nn.SyncBatchNorm` does so on GPUs alone.
- random numbers: dropout and augmentation draw for the whole batch, and a worker takes the rows of its own images, so
  that the generators of all workers stay equal to the plain loop's.

`encoders.training.whole_batch` does the last two. What remains is the order in which floating-point numbers are added.
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
        This process among how many.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def of_process_group(cls) -> Workers:
        """Return all processes of the group that this process has joined."""
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this worker writes and reports."""
        return self.rank == 0

    def share(self, num_images: int, chunk_size: int | None = None) -> Share:
        """Return this worker's part of a batch; the batch is cut into chunks first, then each chunk among workers."""
        return Share(self, num_images, chunk_size)

    def from_first(self, value: T) -> T:
        """Return what the first worker has here."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def copy_first(self, *modules: nn.Module) -> None:
        """Give the modules the first worker's weights: machines of another kind may draw other ones."""
        if self.size > 1:
            for module in modules:
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def add_gradients(self, shared: nn.Module, repeated: nn.Module) -> None:
        """Add the gradients of all workers up.

        Parameters
        ----------
        shared : nn.Module
            Whose gradients are each worker's part.
        repeated : nn.Module
            Whose gradients every worker has whole: their mean keeps the workers equal to the last bit.
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
    """The images of one batch that one worker takes through the network.

    Parameters
    ----------
    workers : Workers
    num_images : int
        B.
    chunk_size : int or None
        Images of the batch that all workers together pass at a time; None is the whole batch.

    Attributes
    ----------
    own_b : Tensor of int64, shape (b,)
        Where in the batch this worker's images stand.
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
        """Cut rows of this worker's images by chunk."""
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
        """Within this context, random numbers for this worker's images are those of the whole batch."""
        if self._workers.size == 1:
            return contextlib.nullcontext()
        return Draws(self.own_b, self._num_images)

    @contextlib.contextmanager
    def passing(self, number: int, device: torch.device) -> Iterator[None]:
        """Within this context, a network that is given one chunk of this worker's images sees that of all workers.

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
            # torch draws nothing for the dropout of no images.
            set_random_state(self._workers.from_first(random_state(device)), device)


def random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the state of the random numbers of the CPU, and of `device` if that is a GPU, which has its own.

    That one and no other: of several workers each may use another GPU of one machine.
    """
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    """Go back to a state."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def forked_random(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within this context, random numbers of the CPU and of `device` may be seeded; afterwards they are as before."""
    if device.type != "cuda":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[torch.cuda.current_device() if device.index is None else device.index])
