"""Mean and spread of maps and token sets, whole and on patches: how most spaces turn activations into vectors.

Keys are named as published: `layer4_mean` and `layer4_std` of the whole map, one token a sample, and `layer4_mean_2`,
`layer4_std_2`, `layer4_mean_4`, `layer4_std_4` of its patches of 2×2 and 4×4, one token each, row by row.

Legend: K samples, C channels, h, w size of a map, n tokens of a set, T patches.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from dipole.errors import InvalidInput

STD_EPSILON = 1e-6  # published; under the root, so that the gradient at zero spread is zero and not infinite
MAP_POOLS = {"mean": None, "std": None, "mean_2": 2, "std_2": 2, "mean_4": 4, "std_4": 4}  # side of the patches


def token_mean(values: Tensor, dim: int) -> Tensor:
    return values.mean(dim)


def token_std(values: Tensor, dim: int) -> Tensor:
    """sqrt(Var + 1e-6), Var over all of them and not over all but one."""
    return (values.var(dim, correction=0) + STD_EPSILON).sqrt()


STATISTICS = {"mean": token_mean, "std": token_std}


def map_keys(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Every key that maps of these names have, with the map's name and the pool's."""
    return {f"{name}_{pool}": (name, pool) for name in names for pool in MAP_POOLS}


def pool_map(grid: Tensor, pool: str, *, key: str) -> Tensor:
    """A map (K, C, h, w) as (K, T, C), by a name of MAP_POOLS. Raises InvalidInput where patches do not fill it."""
    statistic, side = STATISTICS[pool.partition("_")[0]], MAP_POOLS[pool]
    if side is None:
        return statistic(grid.flatten(2), 2)[:, None]
    height, width = grid.shape[2:]
    if height % side or width % side:
        raise InvalidInput(
            f"features.keys: {key!r} cuts a map into patches of {side}×{side}, and at this resolution the map is "
            f"{height}×{width}: leave that key out, or change the resolution",
            field="features.keys",
        )
    return statistic(cut_patches(grid, side), 2)


def cut_patches(grid: Tensor, side: int) -> Tensor:
    """(K, C, h, w) cut into squares: (K, T, side², C)."""
    k, channels, height, width = grid.shape
    cut = grid.reshape(k, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(k, -1, side * side, channels)
