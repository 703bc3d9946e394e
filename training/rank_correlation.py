"""Rank correlations of two short lists, ties among them. NaN where one of the lists is constant."""

import numpy as np


def spearman(x, y):
    """Spearman's ρ: Pearson's r of the ranks, tied values sharing the mean of theirs."""
    return _pearson(_ranks(x), _ranks(y))


def kendall(x, y):
    """Kendall's τ-b (Kendall 1945): concordant pairs less discordant ones, corrected for ties.

    It is Pearson's r, not centred, of the signs of all differences.
    """
    signs = [np.sign(np.subtract.outer(values, values)) for values in map(np.asarray, (x, y))]
    return _cosine(*signs)


def _ranks(values):
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _pearson(x, y):
    return _cosine(x - np.mean(x), y - np.mean(y))


def _cosine(x, y):
    size = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / size) if size else float("nan")
