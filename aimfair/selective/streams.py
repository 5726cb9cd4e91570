"""CUDA streams: whether one is captured, and the order between those of a backward pass.

Gradients are made on the streams of their forward pass.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

Stream = torch.cuda.Stream | None
"""None: the CPU."""


def current_stream(device: torch.device) -> Stream:
    """The stream on which work on ``device`` is queued now."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def stream_of(device: torch.device) -> int:
    """The current stream as a number: what is cached for it is valid on it only, as freed memory is reused in stream
    order."""
    return 0 if (stream := current_stream(device)) is None else int(stream.cuda_stream)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of a device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def refuse_capture(call: str, device: torch.device) -> None:
    """RuntimeError if a CUDA graph is being captured; reading on the host would end the capture with another error."""
    if is_capturing(device):
        raise RuntimeError(
            f"{call}: the host reads statistics, which a CUDA graph cannot hold; call it outside of the capture"
        )


@contextmanager
def after(streams: Iterable[Stream], device: torch.device) -> Iterator[None]:
    """What is queued inside waits for what ``streams`` have been given so far, and what they are given later for it.

    So memory of theirs may be read inside, and freed: they do not use it again before it was read.
    """
    current = current_stream(device)
    others = {stream for stream in streams if stream is not None and stream != current}
    for stream in others:
        current.wait_stream(stream)  # type: ignore[union-attr]
    try:
        yield
    finally:
        for stream in others:
            stream.wait_stream(current)  # type: ignore[arg-type]
