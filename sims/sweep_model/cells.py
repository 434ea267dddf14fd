"""From a config to the models, captions and prompts of all its cells."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mmcl_theory as mt
from sims.engine.flags import UsageError
from sims.engine.grid import Point
from sims.sweep_model import model_file
from sims.sweep_model.config import Config, check_classes
from sims.sweep_model.model_file import BASES, CAPTIONS, Spec

_NUMBERS = ("sigma_image", "sigma_text", "theta", "kappa", "same_class_weight")


class Cells(NamedTuple):
    """All cells: NumPy arrays with a leading dimension, and the structure of (model, captions, prompts, numbers)."""

    leaves: list[np.ndarray]
    tree: Any
    classes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a run needs. n is a whole number where it is measured; same_class_weight None: the ordinary loss."""

    model: mt.data.Mixture
    caps: mt.data.GroupCaptions
    obs: mt.data.Observation
    prompts: jax.Array
    n: Any
    embed_dim: int | None
    theta: jax.Array
    kappa: jax.Array
    same_class_weight: jax.Array | None

    @property
    def truncated(self) -> bool:
        return self.embed_dim is not None and self.embed_dim < min(self.obs.dim_image, self.obs.dim_text)


def build(config: Config, **changed: tuple[float, ...]) -> Cells:
    """All cells. changed: other values of an axis. Raises: UsageError if the model file cannot be used."""
    specs = config.cells(**changed)
    with jax.enable_x64(True):
        try:
            model, caps = _from_function(config, specs) if "parameters" in config.spec else _from_groups(specs)
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
        rows = [{**spec["observation"], **spec} for spec in specs]
        numbers = {x: np.array([row[x] for row in rows], float) for x in _NUMBERS if rows[0][x] is not None}
        prompts = jnp.broadcast_to(prompts, (len(specs), *prompts.shape[-2:]))
        leaves, tree = jax.tree.flatten((model, caps, prompts, numbers))
        return Cells([np.asarray(x) for x in leaves], tree, model.classes)


def _from_groups(specs: list[Spec]) -> tuple[mt.data.Mixture, mt.data.GroupCaptions]:
    """The models of a YAML or JSON file."""
    groups = [spec["groups"] for spec in specs]

    def stacked(key: str) -> np.ndarray:
        return np.array([[group[key] for group in each] for each in groups], float)

    covariance = [[g["covariance"] if "covariance" in g else np.diag(g["variance"]) for g in each] for each in groups]
    shifted = None if groups[0][0]["shifted_weight"] is None else stacked("shifted_weight")
    classes = [group["class"] for group in groups[0]]
    model = mt.mixture(stacked("weight"), stacked("mean"), np.array(covariance), classes, shifted)
    bases = {kind: np.asarray(mt.group_captions(model, base=kind).base) for kind in BASES}

    def numbers(key: str, i: int, g: int) -> Any:
        value = groups[i][g]["captions"].get(key, specs[i]["captions"][key])
        return bases[value][i, g] if isinstance(value, str) else value

    cells, each = range(len(specs)), range(len(classes))
    faults = {key: np.array([[numbers(key, i, g) for g in each] for i in cells], float) for key in CAPTIONS}
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


def pick(config: Config, cells: Cells, point: Point, axes: dict[str, tuple[float, ...]]) -> Cell:
    """The cell of a point, which may hold the leaves of the cells. axes: their values, in the order of the cells."""
    index: Any = 0
    for name, values in axes.items():
        index = index * len(values) + jnp.abs(jnp.asarray(values) - point[name]).argmin()
    leaves = [jnp.asarray(x)[index] for x in point.get("leaves", cells.leaves)]
    model, caps, prompts, numbers = jax.tree.unflatten(cells.tree, leaves)
    spec = config.spec
    sizes = {config.axes[name][0]: point[name] for name in config.sizes}
    image, text = model_file.dimensions(spec, model.num_latents)
    image, text = sizes.get("observation.dim_image", image), sizes.get("observation.dim_text", text)
    embed_dim = sizes.get("embed_dim", spec["embed_dim"])
    return Cell(
        model=model,
        caps=caps,
        obs=mt.observation(image, text, numbers["sigma_image"], numbers["sigma_text"]),
        prompts=prompts,
        n=sizes.get("n", int(spec["n"])),
        embed_dim=None if embed_dim is None else int(embed_dim),
        theta=numbers["theta"],
        kappa=numbers["kappa"],
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
