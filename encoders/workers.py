"""Several processes that train one model as one process would.

All run the same loop over the same batches, and each takes its part of a batch's images through the network. What a
plain loop would see of the whole batch, all of them see:

- the loss, because the outputs of the whole batch are gathered before it. Each worker then keeps the gradient of its
  own outputs, and the gradients of the weights are added up: not averaged, as the loss is one already.
- batch normalisation, whose means and variances are gathered. `torch.nn.SyncBatchNorm` does so on GPUs alone.
- random numbers: dropout and augmentation draw for the whole batch, and a worker takes the rows of its own images, so
  that the generators of all workers stay equal to the plain loop's.

What remains is the order in which floating-point numbers are added. Shapes: B images of a batch, b of them this
worker's, K bits, C channels, P workers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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
        return _Draws(self.own_b, self._num_images)

    @contextlib.contextmanager
    def passing(self, number: int) -> Iterator[None]:
        """Within this context, a network that is given one chunk of this worker's images sees that of all workers."""
        if self._workers.size == 1:
            yield
            return
        parts = self._parts[number]
        own_b = parts[self._workers.rank] - parts[0][0]
        counts = [len(part) for part in parts]
        with _Draws(own_b, sum(counts)), _BatchNorm(self._workers, counts):
            yield
        if 0 in counts:
            # torch draws nothing for the dropout of no images.
            set_random_state(self._workers.from_first(random_state()))


def random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the state of the random numbers of this process, and of its GPU's if it has one."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def set_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Go back to a state."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random numbers with a row an image are drawn for all images, and this worker's rows taken.

    Parameters
    ----------
    own_b : Tensor of int64, shape (b,)
    num_images : int
        B.
    """

    def __init__(self, own_b: torch.Tensor, num_images: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self._own_b, self._num_images = own_b, num_images

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, an ordinary one as it is."""
        options = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **options)
        names = [argument.name for argument in func._schema.arguments]
        if "size" in names:
            return self._create(func, list(args), options, names.index("size"))
        if func is torch.ops.aten.native_dropout.default:
            return self._dropout(func, *args)
        if func._schema.is_mutable:
            return self._fill(func, args, options)
        raise self._unknown(func)

    def _create(self, func: Any, args: list[Any], options: dict[str, Any], place: int) -> torch.Tensor:
        args[place] = self._whole_shape(func, args[place])
        return self._own_rows(func(*args, **options))

    def _fill(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> torch.Tensor:
        target: torch.Tensor = args[0]
        whole = func(self._like_whole(func, target), *args[1:], **options)
        return target.copy_(self._own_rows(whole))

    def _dropout(self, func: Any, value: torch.Tensor, share: float, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        factor, kept = func(torch.ones_like(self._like_whole(func, value)), share, train)
        return value * self._own_rows(factor), self._own_rows(kept)

    def _like_whole(self, func: Any, value: torch.Tensor) -> torch.Tensor:
        """Return an empty tensor of all images with the layout of `value`: numbers are drawn in order of memory."""
        whole = value.new_empty(self._whole_shape(func, value.shape))
        channels_last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
        return whole.contiguous(memory_format=torch.channels_last) if channels_last else whole

    def _whole_shape(self, func: Any, shape: Sequence[int]) -> list[int]:
        if not shape or shape[0] != len(self._own_b):
            raise self._unknown(func, tuple(shape))
        return [self._num_images, *shape[1:]]

    def _own_rows(self, value: torch.Tensor) -> torch.Tensor:
        return value[self._own_b.to(value.device)]

    def _unknown(self, func: Any, shape: tuple[int, ...] | None = None) -> NotImplementedError:
        got = f"{func}" if shape is None else f"{func} of shape {shape}"
        return NotImplementedError(
            f"several workers can share random numbers that have a row for each of their {len(self._own_b)} images, "
            f"got {got}: train this network with one worker"
        )


class _BatchNorm(TorchFunctionMode):
    """Batch normalisation by the mean and variance of all workers' images.

    Parameters
    ----------
    workers : Workers
    counts : list of int
        Images of each worker.
    """

    def __init__(self, workers: Workers, counts: list[int]):
        super().__init__()
        self._workers, self._counts = workers, counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one function, any but batch normalisation as it is."""
        run = self._normalise if func is functional.batch_norm else func
        return run(*args, **(kwargs or {}))

    def _normalise(
        self,
        value: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not training:
            return functional.batch_norm(value, running_mean, running_var, weight, bias, False, momentum, eps)
        mean_C, var_C, count = self._statistics(value)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
                running_var.lerp_((var_C * (count / max(count - 1, 1))).to(running_var.dtype), momentum)
        scale_C = torch.rsqrt(var_C + eps) if weight is None else torch.rsqrt(var_C + eps) * weight
        shift_C = -mean_C * scale_C if bias is None else bias - mean_C * scale_C
        shape = (1, -1, *([1] * (value.ndim - 2)))
        exact = torch.promote_types(value.dtype, torch.float32)
        return (value * scale_C.to(exact).view(shape) + shift_C.to(exact).view(shape)).to(value.dtype)

    def _statistics(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return mean and variance (C,) over all workers' images, and how many values they are over.

        Each worker sums squares around its own mean; sums of plain squares would lose digits.
        """
        # As torch's own batch normalisation: it adds up in float64 on CPUs.
        dtype = torch.float64 if value.device.type == "cpu" else torch.float32
        dims = [dim for dim in range(value.ndim) if dim != 1]
        places = math.prod(value.shape[2:])
        counts = [rows * places for rows in self._counts]
        sum_C = value.sum(dims, dtype=dtype)
        own_mean_C = sum_C / max(counts[self._workers.rank], 1)
        exact = torch.promote_types(value.dtype, torch.float32)
        off = value.to(exact) - own_mean_C.to(exact).view(1, -1, *([1] * (value.ndim - 2)))
        around_C = off.square().sum(dims, dtype=dtype)
        stacked = torch.stack([sum_C, around_C])
        sum_PC, around_PC = _Gather.apply(stacked, self._workers).unbind(1)  # type: ignore[no-untyped-call]
        count_P1 = sum_PC.new_tensor(counts)[:, None]
        mean_C = sum_PC.sum(0) / sum(counts)
        between_PC = count_P1 * (sum_PC / count_P1.clamp(min=1) - mean_C).square()
        return mean_C, (around_PC + between_PC).sum(0) / sum(counts), sum(counts)


class _Gather(torch.autograd.Function):
    """Stacks a tensor of every worker; its gradient is the sum of what all workers ask of it."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, workers: Workers) -> torch.Tensor:
        """Return (P, *shape)."""
        ctx.rank = workers.rank
        parts = [torch.empty_like(value) for _ in range(workers.size)]
        dist.all_gather(parts, value.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of this worker's tensor."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.rank], None
