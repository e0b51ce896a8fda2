"""Blur guidance (arXiv:2210.00939, section 4.1). The weaker prediction is made from a blurred image."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from sag.diffusion.schedule import Table
from sag.guidance.base import Branch, GuidanceState, Scale, WeakGuidance
from sag.guidance.batch import Question


@lru_cache(maxsize=16)
def _blur_matrix(size: int, sigma: float, kernel: int) -> Table:
    """Return (size, size) float64: row i has the weights of a line's pixels in blurred pixel i."""
    radius = kernel // 2
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    sources = np.abs(np.arange(size)[:, None] + offsets)  # (size, kernel), reflected at the first pixel ...
    sources = np.where(sources >= size, 2 * (size - 1) - sources, sources)  # ... and at the last
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], sources), weights)
    return matrix


def gaussian_blur(x: Tensor, sigma: float, kernel: int) -> Tensor:
    """Blur images with a truncated Gaussian, with reflection at the borders.

    Args:
        x: Images, (N, C, H, W).
        sigma: Standard deviation of the Gaussian in pixels.
        kernel: Number of taps, odd.

    Returns:
        The blurred images, in the shape and dtype of x.

    Raises:
        ValueError: If the images are too small to reflect half the kernel.
    """
    height, width = x.shape[2:]
    if min(height, width) <= kernel // 2:
        raise ValueError(
            f"a blur_kernel of {kernel} needs images of at least {kernel // 2 + 1} pixels, got {height}x{width}; "
            f"use blur_kernel={2 * min(height, width) - 1} or less"
        )
    rows, columns = (torch.from_numpy(_blur_matrix(size, sigma, kernel)).to(x.device, x.dtype) for size in (height, width))
    return rows @ x @ columns.T


class BlurGuidance(WeakGuidance):
    """Guidance away from the prediction made from a blurred image.

    Args:
        scale: See `Guidance`.
        blur_sigma: Standard deviation of the Gaussian in pixels.
        blur_kernel: Number of taps, odd.
        branch: The prediction that is degraded if classifier-free guidance makes two; "uncond" as published.
        interval: See `Guidance`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        scale: Scale,
        blur_sigma: float,
        blur_kernel: int = 31,
        branch: Branch = "uncond",
        interval: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(scale, interval)
        if blur_sigma <= 0:
            raise ValueError(f"blur_sigma must be positive, got {blur_sigma}")
        if blur_kernel < 1 or blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be an odd number of taps, got {blur_kernel}")
        if branch not in ("cond", "uncond"):
            raise ValueError(f"branch must be cond or uncond, got {branch!r}")
        self.blur_sigma = float(blur_sigma)
        self.blur_kernel = blur_kernel
        self.branch = branch

    def clean_and_blurred(self, state: GuidanceState) -> tuple[Tensor, Tensor]:
        """Return the predicted clean image, clamped if the diffusion clamps, and its blur, (N, C, H, W) each."""
        prediction = state.prediction(self.branch)
        x_0 = state.diffusion.predicted_x0(state.x_t, state.t, prediction.eps, prediction.x_0)
        return x_0, gaussian_blur(x_0, self.blur_sigma, self.blur_kernel)

    def degrade(self, state: GuidanceState) -> Tensor:
        """Return the degraded x_t, (N, C, H, W): the blurred clean image with the predicted noise."""
        _, blurred = self.clean_and_blurred(state)
        return state.diffusion.q_sample(blurred, state.t, state.prediction(self.branch).eps)

    @override
    def question(self, state: GuidanceState) -> Question:
        return Question(self.degrade(state), state.condition(self.branch))
