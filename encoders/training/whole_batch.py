"""Random numbers and batch statistics over all images of a batch that several workers share.

Two contexts around the passes of any network; the network itself needs no change. Shapes: B images of a batch (or of
a chunk of it), b of them this worker's, C channels, P workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws random numbers for all images of the batch and keeps this worker's rows.

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
        """Run one operation; those that draw no random numbers are unchanged."""
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
        """Return an empty tensor for all images in the layout of `value`: numbers are drawn in memory order."""
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
            f"several workers can only share random numbers with a row for each of their {len(self._own_b)} images, "
            f"got {got}: train this network with one worker"
        )


class BatchNorm(TorchFunctionMode):
    """Batch normalisation with the mean and variance over all workers' images.

    Parameters
    ----------
    rank : int
        The index of this worker.
    counts : list of int
        Number of images of each worker.
    """

    def __init__(self, rank: int, counts: list[int]):
        super().__init__()
        self._rank, self._counts = rank, counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one function; all but batch normalisation are unchanged."""
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
        """Return mean and variance (C,) over all workers' images, and the number of values behind them.

        Each worker sums squares around its own mean, because sums of plain squares would lose digits.
        """
        # Like torch's own batch normalisation, which sums in float64 on CPUs.
        dtype = torch.float64 if value.device.type == "cpu" else torch.float32
        dims = [dim for dim in range(value.ndim) if dim != 1]
        places = math.prod(value.shape[2:])
        counts = [rows * places for rows in self._counts]
        sum_C = value.sum(dims, dtype=dtype)
        own_mean_C = sum_C / max(counts[self._rank], 1)
        exact = torch.promote_types(value.dtype, torch.float32)
        off = value.to(exact) - own_mean_C.to(exact).view(1, -1, *([1] * (value.ndim - 2)))
        around_C = off.square().sum(dims, dtype=dtype)
        stacked = torch.stack([sum_C, around_C])
        sum_PC, around_PC = _Gather.apply(stacked, self._rank, len(counts)).unbind(1)  # type: ignore[no-untyped-call]
        count_P1 = sum_PC.new_tensor(counts)[:, None]
        mean_C = sum_PC.sum(0) / sum(counts)
        between_PC = count_P1 * (sum_PC / count_P1.clamp(min=1) - mean_C).square()
        return mean_C, (around_PC + between_PC).sum(0) / sum(counts), sum(counts)


class _Gather(torch.autograd.Function):
    """Stacks a tensor of every worker; its gradient is the sum of all workers' gradients."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """Return (P, *shape)."""
        ctx.rank = rank
        parts = [torch.empty_like(value) for _ in range(size)]
        dist.all_gather(parts, value.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of this worker's tensor."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.rank], None, None
