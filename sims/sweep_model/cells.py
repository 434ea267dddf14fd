"""From a config to the models, captions and prompts of all its cells."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mmcl_theory as mt
from mmcl_theory.data.captions import second_moments
from sims.engine.flags import UsageError
from sims.engine.grid import Point
from sims.sweep_model import model_file
from sims.sweep_model.config import Config, check_classes
from sims.sweep_model.model_file import BASES, CAPTIONS, Spec

STEPS = 4000  # of gradient descent for early_stopped, whatever the time
LARGEST_STEP = 0.05  # learning rate times the largest singular value
_NUMBERS = ("sigma_image", "sigma_text", "n", "theta", "kappa", "time", "same_class_weight")


class Cells(NamedTuple):
    """All cells: NumPy arrays with a leading dimension, and the structure of (model, captions, prompts, numbers)."""

    leaves: list[np.ndarray]
    tree: Any
    classes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a run needs. n is a whole number where pairs are drawn; same_class_weight None: the ordinary loss."""

    model: mt.data.Mixture
    caps: mt.data.GroupCaptions
    obs: mt.data.Observation
    prompts: jax.Array
    n: Any
    embed_dim: int | None
    theta: jax.Array
    kappa: jax.Array
    time: jax.Array
    same_class_weight: jax.Array | None

    @property
    def truncated(self) -> bool:
        return self.embed_dim is not None and self.embed_dim < min(self.obs.dim_image, self.obs.dim_text)


def build(config: Config, **changed: tuple[float, ...]) -> Cells:
    """All cells. changed: other values of an axis. Raises: UsageError if the model file cannot be used."""
    specs, count = config.cells(**changed), config.count(**changed)
    with jax.enable_x64(True):
        try:
            model, caps = _from_groups(specs[0], count) if "groups" in config.spec else _from_function(config, specs)
            given = specs[0]["prompts"]
            prompts = model.prompts(given) if isinstance(given, str) else jnp.asarray(given, float)
            if jnp.isnan(prompts).any():
                raise ValueError("a class has no weight, so it has no prompt.")
        except ValueError as error:
            raise UsageError(f"--model={config.model}: {error}") from None
        if "supervised" in config.learners:
            check_classes(model.num_classes)
        for spec in specs:
            model_file.check_settings(spec, model.num_latents)
        if "early_stopped" in config.learners:
            _check_time(model, caps, specs)
        rows = [{**spec["observation"], **spec} for spec in specs]
        columns = {
            x: np.concatenate([np.atleast_1d(row[x]) for row in rows]) for x in _NUMBERS if rows[0][x] is not None
        }
        numbers = {x: np.broadcast_to(column, count).astype(float) for x, column in columns.items()}
        prompts = jnp.broadcast_to(prompts, (count, *prompts.shape[-2:]))
        leaves, tree = jax.tree.flatten((model, caps, prompts, numbers))
        return Cells([np.asarray(x) for x in leaves], tree, model.classes)


def _check_time(model: mt.data.Mixture, caps: mt.data.GroupCaptions, specs: list[Spec]) -> None:
    """Raise UsageError where the steps of gradient descent would be too long for the largest singular value."""
    largest = np.linalg.norm(np.asarray(second_moments(model, caps)[1]), 2, axis=(-2, -1))
    time = np.concatenate([np.atleast_1d(spec["time"]) for spec in specs])
    if (long := largest * time > LARGEST_STEP * STEPS).any():
        most = LARGEST_STEP * STEPS / np.broadcast_to(largest, long.shape)[long][0]
        raise UsageError(
            f"time: must be <= {most:.3g} for early_stopped with these strengths, got"
            f" {np.broadcast_to(time, long.shape)[long][0]:g}."
        )


def _from_groups(spec: Spec, count: int) -> tuple[mt.data.Mixture, mt.data.GroupCaptions]:
    """The models of a YAML or JSON file, of all cells; the spec's numbers are of one cell or of all."""
    groups, l = spec["groups"], len(spec["groups"][0]["mean"])

    def array(rows: list[Any], rank: int) -> np.ndarray:
        values = model_file.stacked(rows)
        return np.broadcast_to(values, (count, *values.shape[-rank:]))

    def column(key: str) -> np.ndarray:
        return array([group[key] for group in groups], 1)

    def spread(group: Spec) -> list[list[Any]]:
        """The covariance of a group, by rows."""
        if "covariance" in group:
            return group["covariance"]
        return [[group["variance"][j] if i == j else 0.0 for j in range(l)] for i in range(l)]

    shifted = None if groups[0]["shifted_weight"] is None else column("shifted_weight")
    covariance = array([spread(group) for group in groups], 3)
    classes = [group["class"] for group in groups]
    model = mt.mixture(column("weight"), array([group["mean"] for group in groups], 2), covariance, classes, shifted)
    bases = {kind: np.asarray(mt.group_captions(model, base=kind).base) for kind in BASES}

    def numbers(key: str, g: int) -> list[Any]:
        value = groups[g]["captions"].get(key, spec["captions"][key])
        return [bases[value][:, g, j] for j in range(l)] if isinstance(value, str) else value

    faults = {key: array([numbers(key, g) for g in range(len(groups))], 2) for key in CAPTIONS}
    return model, mt.group_captions(model, **faults)


def _from_function(config: Config, specs: list[Spec]) -> tuple[mt.data.Mixture, mt.data.GroupCaptions]:
    """The models of a Python file, one call for each cell."""
    namespace: dict[str, Any] = {"__name__": "model_file", "__file__": config.model}
    made = []
    try:
        exec(compile(config.spec["source"], config.model, "exec"), namespace)
        for spec in specs:
            model, caps = namespace["model"](**spec["parameters"])
            made.append((model, mt.group_captions(model) if caps is None else caps))
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"--model={config.model}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    kinds = (mt.data.Mixture, mt.data.GroupCaptions)
    for pair in made:
        if not all(map(isinstance, pair, kinds)) or pair[0].weight.ndim != 1:
            names = ", ".join(type(x).__name__ for x in pair)
            raise ValueError(f"model() must return one mt.mixture and its mt.group_captions or None, got {names}.")
        if _form(pair) != _form(made[0]):
            raise ValueError("model() must return the same classes, groups and latents in all cells.")
    return jax.tree.map(lambda *x: jnp.stack(x), *made)


def _form(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]


def pick(config: Config, cells: Cells, point: Point) -> Cell:
    """The cell of a point of the grid, which may hold the leaves of the cells; n is a whole number."""
    index: Any = 0
    for name, (_, values) in config.axes.items():
        index = index * len(values) + jnp.abs(jnp.asarray(values) - point[name]).argmin()
    leaves = [jnp.asarray(x)[index] for x in point.get("leaves", cells.leaves)]
    sizes = {config.axes[name][0]: int(point[name]) for name in config.sizes}
    return assemble(config, cells.tree, leaves, {"n": int(config.spec["n"]), **sizes})


def assemble(config: Config, tree: Any, leaves: list[Any], sizes: Mapping[str, int]) -> Cell:
    """The cell of these leaves, which have no leading dimension. sizes: by path, in place of the file's."""
    model, caps, prompts, numbers = jax.tree.unflatten(tree, leaves)
    image, text = model_file.dimensions(config.spec, model.num_latents)
    image, text = (int(sizes.get(f"observation.{name}", d)) for name, d in (("dim_image", image), ("dim_text", text)))
    embed_dim = sizes.get("embed_dim", config.spec["embed_dim"])
    return Cell(
        model=model,
        caps=caps,
        obs=mt.observation(image, text, numbers["sigma_image"], numbers["sigma_text"]),
        prompts=prompts,
        n=sizes.get("n", numbers["n"]),
        embed_dim=None if embed_dim is None else int(embed_dim),
        theta=numbers["theta"],
        kappa=numbers["kappa"],
        time=numbers["time"],
        same_class_weight=numbers.get("same_class_weight"),
    )


def group_names(config: Config, cells: Cells) -> list[str]:
    """Names of the groups, of the file or by number and class."""
    if "names" in config.spec:
        return config.spec["names"]["groups"]
    if named := config.spec["group_names"]:
        if len(named) != len(cells.classes):
            raise UsageError(f"--model={config.model}: GROUPS must have {len(cells.classes)} names.")
        return named
    return [f"group {g} (class {k})" for g, k in enumerate(cells.classes)]
