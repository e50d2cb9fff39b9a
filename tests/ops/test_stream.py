"""The residual stream gives the same whether what is added to it waits in parts or not."""

from __future__ import annotations

import pytest
import torch

from mini_infer.ops import linear
from mini_infer.ops.cublaslt import Product
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.stream import HalfNormed, Stream

WEIGHT, EPS = torch.rand(16) + 0.5, 1e-6


def test_reading_adds_what_waits() -> None:
    start, first, second = torch.randn(3, 16), torch.randn(2, 3, 16), torch.randn(4, 3, 16)
    stream = Stream(start.clone())
    stream.add_in_parts(first)
    assert stream.in_parts and len(stream) == 3
    stream.add_in_parts(second)
    assert stream.in_parts
    want = start + first.sum(0) + second.sum(0)
    torch.testing.assert_close(stream.value, want)
    assert not stream.in_parts
    torch.testing.assert_close(stream.value, want)


def test_a_norm_adds_once_and_leaves_the_sum() -> None:
    start, parts = torch.randn(3, 16), torch.randn(2, 3, 16)
    stream = Stream(start.clone())
    stream.add_in_parts(parts)
    want = start + parts.sum(0)
    for _ in range(2):
        torch.testing.assert_close(stream.norm(WEIGHT, EPS), rms_norm(want, WEIGHT, EPS))
        assert not stream.in_parts
    torch.testing.assert_close(stream.value, want)


def test_a_norm_half_done_is_gone_with_the_next_addition() -> None:
    weight, other = torch.rand(16), torch.rand(16)
    half = HalfNormed(weight, torch.zeros(3, 16), torch.zeros(3, 1))
    stream = Stream(torch.randn(3, 16))
    assert stream.half_normed(weight) is None

    def add_in_place() -> None:
        stream.target.add_(1.0)

    def add_in_parts() -> None:
        stream.add_in_parts(torch.randn(2, 3, 16))

    def replace() -> None:
        stream.value = stream.value[:2]

    for change in (add_in_place, add_in_parts, replace):
        stream.begin_norm(half)
        assert stream.value is not None and stream.half_normed(weight) is half and stream.half_normed(other) is None
        change()
        assert stream.half_normed(weight) is None


@pytest.mark.parametrize("bias", [None, torch.randn(16)], ids=["plain", "bias"])
def test_a_product_in_parts(monkeypatch: pytest.MonkeyPatch, bias: torch.Tensor | None) -> None:
    """linear_add leaves them to the norm, and few-row kernels get a stream that waits for nothing."""

    class Plan:
        product = Product(3, 16, 8, torch.float32, parts=2)

        def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            halves = zip(x.chunk(2, 1), weight.chunk(2, 1), strict=True)
            return torch.stack([x @ weight.t() for x, weight in halves])

    x, weight, start = torch.randn(3, 8), torch.randn(16, 8), torch.randn(3, 16)
    monkeypatch.setattr(linear, "tuned_plan", lambda *_, **__: Plan())
    monkeypatch.setattr(linear, "_skinny", lambda *_, **__: None)
    monkeypatch.setattr(linear.cuda_few, "choose_blocks", lambda *_, **__: None)
    want = start + x @ weight.t() + (0 if bias is None else bias)
    stream = Stream(start.clone())
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
        linear.linear_add(stream, x, weight, bias)
    assert stream.in_parts
    monkeypatch.setattr(linear, "_skinny", lambda x, weight: pytest.fail("not while something waits"))
    after = torch.randn(5, 16)
    monkeypatch.setattr(linear, "linear", lambda x, weight, bias: x @ weight.t())
    got = linear.norm_linear(stream, WEIGHT, EPS, after, None)
    torch.testing.assert_close(got, rms_norm(want, WEIGHT, EPS) @ after.t())
    torch.testing.assert_close(stream.value, want)
