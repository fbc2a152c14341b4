"""Figures of pictures against others, and statistics of paired samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Picture = NDArray[np.uint8]  # [H, W, 3]
HIGHEST_PSNR = 100.0  # dB, what equal pictures get: their ratio has no logarithm
WINDOW, SIGMA = 11, 1.5  # of SSIM (Wang et al., 2004)


def psnr(picture: Picture, reference: Picture) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB, over all channels together."""
    error = np.mean((picture.astype(np.float64) - reference.astype(np.float64)) ** 2)
    if error == 0:
        return HIGHEST_PSNR
    return min(HIGHEST_PSNR, float(10 * np.log10(255.0**2 / error)))


def ssim(picture: Picture, reference: Picture) -> float:
    """Structural similarity: Gaussian window of 11 pixels (σ 1.5), K 0.01 and 0.03, the mean over
    the windows that lie inside and over the channels."""
    x, y = picture.astype(np.float64) / 255, reference.astype(np.float64) / 255
    c1, c2 = 0.01**2, 0.03**2
    mx, my = _smooth(x), _smooth(y)
    vx, vy = _smooth(x * x) - mx * mx, _smooth(y * y) - my * my
    both = _smooth(x * y) - mx * my
    light = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return float(np.mean(light * (2 * both + c2) / (vx + vy + c2)))


def _smooth(values: F64) -> F64:
    """Weighted means of [H, W, C] in every window that lies inside: [H - 10, W - 10, C]."""
    places = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(places**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        seen = np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis)
        values = seen @ weights
    return values


def relative_l2(x: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """‖x - reference‖₂ / ‖reference‖₂."""
    away = np.asarray(x, np.float64) - np.asarray(reference, np.float64)
    return float(np.linalg.norm(away) / np.linalg.norm(np.asarray(reference, np.float64)))


def bootstrap(
    differences: F64, *, draws: int = 10_000, share: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The middle `share` of means of samples drawn again with replacement (percentile bootstrap).

    differences: of pairs, [n]; drawing pairs together is what makes the interval a paired one.
    """
    numbers, found = np.random.default_rng(seed), list[F64]()
    for begin in range(0, draws, 500):
        picked = numbers.integers(
            len(differences), size=(min(500, draws - begin), len(differences))
        )
        found.append(differences[picked].mean(axis=1))
    low, high = np.quantile(np.concatenate(found), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def ranks(values: F64) -> F64:
    """Ranks from 0; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    after = np.cumsum(counts)
    means: F64 = (after - (counts + 1) / 2)[places]
    return means


def correlations(x: F64, y: F64) -> tuple[float, float]:
    """(Pearson's, Spearman's); 0 where one of both does not vary."""

    def pearson(a: F64, b: F64) -> float:
        return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0

    return pearson(x, y), pearson(ranks(x), ranks(y))
