"""Batches: pixels are made after all samples of a batch are drawn, and become float32 on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from peco.core.device import CPU
from peco.data.loader import Fields, collate, to_device


def test_pixels_are_made_sample_by_sample_after_all_are_drawn() -> None:
    events: list[str] = []

    def pixels(name: str, index: int) -> np.ndarray:
        events.append(f"{name} {index}")
        return np.full((2, 2, 3), index, np.uint8)

    def samples() -> Iterator[Fields]:
        for i in range(2):
            events.append(f"draw {i}")
            yield {"index": i, "image_1": lambda i=i: pixels("first", i), "image_2": lambda i=i: pixels("second", i)}

    batch = collate(samples())
    assert events == ["draw 0", "draw 1", "first 0", "second 0", "first 1", "second 1"]
    assert batch["index"].tolist() == [0, 1]
    assert batch["image_2"][:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("sizes", [[5], [2, 3]])
def test_pixels_become_floats_from_0_to_1_in_planes(sizes: list[int]) -> None:
    pixels_BHWC = torch.randint(0, 256, (5, 4, 6, 3), dtype=torch.uint8)
    parts = [
        {"image": image, "index": index}
        for image, index in zip(pixels_BHWC.split(sizes), torch.arange(5).split(sizes), strict=True)
    ]
    batch = to_device(parts, CPU)
    assert torch.equal(batch["image"], pixels_BHWC.permute(0, 3, 1, 2).float() / 255)
    assert batch["image"].is_contiguous()
    assert batch["index"].tolist() == [0, 1, 2, 3, 4]
