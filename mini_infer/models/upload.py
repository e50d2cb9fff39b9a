"""From a file mapped into memory to a parameter on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

_STAGING_BYTES = 32 << 20


class Uploader:
    """Copies host tensors into device tensors, converting their dtype on the device.

    For a GPU the data goes through two pinned buffers: while one is being sent, the other is filled from the file's
    pages. A plain copy from pageable memory would do the two one after the other.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._turn = 0
        self._buffers: list[torch.Tensor] = []
        self._sent: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._buffers = [torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._sent = [torch.cuda.Event() for _ in range(2)]

    def copy(self, source: torch.Tensor, target: torch.Tensor, advance: Callable[[int], object]) -> None:
        """target[...] = source, of the same shape; `advance` is told the bytes of each piece."""
        rows = max(1, _STAGING_BYTES * len(source) // source.nbytes) if source.nbytes else 1
        for source_rows, target_rows in zip(source.split(rows), target.split(rows), strict=True):
            if self._buffers and source_rows.nbytes <= _STAGING_BYTES:
                self._send(source_rows, target_rows)
            else:
                target_rows.copy_(source_rows)
            advance(source_rows.nbytes)

    def finish(self) -> None:
        """Wait until everything has arrived; the buffers may go then."""
        for event in self._sent:
            event.synchronize()

    def _send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        buffer, sent = self._buffers[self._turn], self._sent[self._turn]
        self._turn = 1 - self._turn
        sent.synchronize()
        staged = buffer[: source.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source)
        target.copy_(staged.to(self._device, non_blocking=True) if source.dtype != target.dtype else staged,
                     non_blocking=True)
        sent.record()
