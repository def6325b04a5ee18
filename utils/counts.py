"""How many weights a density prunes and keeps: searches and readers of files share the formula."""


def pruned_count(total: int, density: float) -> int:
    """How many of `total` weights go at `density`: int((1 - density) * total), in doubles.

    Truncated as in the authors' code, where rounding would give other counts.
    """
    return int((1 - density) * total)


def count_at(density: float, total: int) -> int:
    """How many of `total` weights stay at `density`."""
    return total - pruned_count(total, density)
