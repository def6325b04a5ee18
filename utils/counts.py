"""How many weights are pruned, a formula that searches and readers of files share."""


def pruned_count(total: int, density: float) -> int:
    """How many of `total` weights go at `density`: int((1 - density) * total), in doubles.

    Truncated as in the authors' code, where rounding would give other counts.
    """
    return int((1 - density) * total)
