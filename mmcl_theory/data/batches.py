"""Functions of single models over grids of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def over_batches(f: Callable[..., Any], *args: Any) -> Any:
    """f of single models, vectorised over the leading dimensions of its arguments, which broadcast.

    args: pairs of an array and the number of its own last dimensions, or pytrees whose class has these for each leaf,
    `ranks`: models, captions, moments.
    """
    leaves: list[tuple[Array, int]] = []
    rebuilt: list[Any] = []
    for arg in args:
        if isinstance(arg, tuple):
            leaves.append(arg)
            rebuilt.append(None)
        else:
            kind: Any = next(kind for kind in type(arg).__mro__ if "ranks" in vars(kind))
            # A class derived from it need not be a pytree.
            values, tree = jax.tree.flatten(kind(**{f.name: getattr(arg, f.name) for f in dataclasses.fields(kind)}))
            leaves += zip(values, kind.ranks, strict=True)
            rebuilt.append(tree)

    def single(*flat: Array) -> Any:
        rest = iter(flat)
        return f(
            *(
                next(rest) if tree is None else jax.tree.unflatten(tree, [next(rest) for _ in range(tree.num_leaves)])
                for tree in rebuilt
            )
        )

    arrays = _broadcast(*leaves)
    batch = arrays[0].shape[: arrays[0].ndim - leaves[0][1]]
    for _ in batch:
        single = jax.vmap(single)
    return single(*arrays)


def _broadcast(*arrays: tuple[Array, int]) -> list[Array]:
    """The arrays, each with the number of its own last dimensions, with common leading dimensions."""
    batch = jnp.broadcast_shapes(*(x.shape[: x.ndim - rank] for x, rank in arrays))
    return [jnp.broadcast_to(x, (*batch, *x.shape[x.ndim - rank :])) for x, rank in arrays]
