"""Functions of single models over grids of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def over_batches(f: Callable[..., Any], *args: Any) -> Any:
    """f of single models, vectorised over the leading dimensions of its arguments, which broadcast.

    All of f is one compiled program, which is kept for this f: pass a function of a module, not one that is made anew.

    args: pairs of an array and the number of its own last dimensions, or pytrees whose class has these for each leaf,
    `ranks`: models, captions, moments.
    """
    leaves: list[Array] = []
    ranks: list[int] = []
    trees: list[Any] = []
    for arg in args:
        if isinstance(arg, tuple):
            leaves.append(arg[0])
            ranks.append(arg[1])
            trees.append(None)
        else:
            kind: Any = next(kind for kind in type(arg).__mro__ if "ranks" in vars(kind))
            # A class derived from it need not be a pytree.
            values, tree = jax.tree.flatten(kind(**{f.name: getattr(arg, f.name) for f in dataclasses.fields(kind)}))
            leaves += values
            ranks += kind.ranks
            trees.append(tree)
    return _over_batches(f, tuple(trees), tuple(ranks), *leaves)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _over_batches(f: Callable[..., Any], trees: tuple[Any, ...], ranks: tuple[int, ...], *leaves: Array) -> Any:
    """`over_batches` of the leaves of all arguments; trees: the structure of each, None for an array."""

    def single(*flat: Array) -> Any:
        rest = iter(flat)
        return f(
            *(
                next(rest) if tree is None else jax.tree.unflatten(tree, [next(rest) for _ in range(tree.num_leaves)])
                for tree in trees
            )
        )

    arrays = _broadcast(*zip(leaves, ranks, strict=True))
    batch = arrays[0].shape[: arrays[0].ndim - ranks[0]]
    for _ in batch:
        single = jax.vmap(single)
    return single(*arrays)


def _broadcast(*arrays: tuple[Array, int]) -> list[Array]:
    """The arrays, each with the number of its own last dimensions, with common leading dimensions."""
    batch = jnp.broadcast_shapes(*(x.shape[: x.ndim - rank] for x, rank in arrays))
    return [jnp.broadcast_to(x, (*batch, *x.shape[x.ndim - rank :])) for x, rank in arrays]
