"""The packed weight gives what the plain one does."""

from __future__ import annotations

import pytest
import torch

from mini_infer.ops import linear
from mini_infer.ops.stream import Stream


@pytest.mark.parametrize("shape", [(1, 384, 96), (5, 33, 70), (40, 16, 1), (61, 32, 48), (321, 16, 8)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_packed_weight(assert_close, dtype, shape, with_bias):
    num_tokens, in_features, out_features = shape
    x = torch.randn(num_tokens, in_features).to(dtype)
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    bias = torch.randn(out_features).to(dtype) if with_bias else None
    packed = linear.pack_weight(weight)
    assert packed.shape == weight.shape and packed.dtype == dtype
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert_close(linear.linear(x, weight, bias), expected)
    assert_close(linear.linear(x, packed, bias), expected)
    residual = torch.randn(num_tokens, out_features).to(dtype)
    summed = residual.double() + expected
    for form in (weight, packed):
        stream = Stream(residual.clone())
        linear.linear_add(stream, x, form, bias)
        assert_close(stream.value, summed)


def test_padded_rows_are_few_and_little_more():
    padded = [linear.padded_rows(rows) for rows in range(1, 1025)]
    assert padded == sorted(padded) and len(set(padded)) == 64
    assert all(rows <= more <= 1.25 * rows for rows, more in enumerate(padded, 1))
    assert all(linear.padded_rows(more) == more for more in padded)
