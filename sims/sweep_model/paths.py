"""The numbers of a spec by path: what `--x=groups.2.weight=0.05:0.95:10` changes in the model."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from sims.engine.flags import UsageError
from sims.latent.parameters import PARAMETERS
from sims.sweep_model.model_file import CAPTIONS, OBSERVATION, SETTINGS, Spec, check

SIZES = ("n", "embed_dim", "observation.dim_image", "observation.dim_text")
_WEIGHTS = ("weight", "shifted_weight")
_ALLOWED = (
    "groups.G.weight, groups.G.mean.J, groups.G.variance.J, groups.G.covariance.J.J, groups.G.captions.mention.J,"
    " classes.K.weight, captions.mention.J (base, wrong, blur), observation.sigma_image, n, same_class_weight,"
    " embed_dim, theta, kappa, time"
)


def at(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """A checked copy of the spec with these numbers, by path; arrays (cells,) set them for many cells at once.

    Raises: UsageError for a bad path or value, which names the first cell that has it.
    """
    try:
        return _changed(spec, values)
    except UsageError:
        for cell in zip(*map(np.ravel, values.values()), strict=True):
            _changed(spec, {path: float(value) for path, value in zip(values, cell, strict=True)})
        raise


def _changed(spec: Spec, values: Mapping[str, Any]) -> Spec:
    spec = copy.deepcopy(spec)
    for path, value in values.items():
        _assign(spec, path, value)
    for path, value in values.items():
        if path.split(".")[-1] in _WEIGHTS and np.max(abs(_total(spec, path) - value)) > 1e-9:
            raise UsageError(f"{' and '.join(values)} change the same weights; sweep one of them.")
    try:
        check(spec)
    except UsageError as error:
        where = ", ".join(f"{path} = {np.ravel(value)[0]:g}" for path, value in values.items())
        raise UsageError(f"at {where}: {error}" if values else str(error)) from None
    return spec


def _assign(spec: Spec, path: str, value: Any) -> None:
    parts = path.split(".")
    match parts:
        case [name] if name in spec.get("parameters", {}):
            whole = isinstance(spec["parameters"][name], int) and value == int(value)
            spec["parameters"][name] = int(value) if whole else value
        case [name] if name in SETTINGS:
            spec[name] = value
        case ["observation", name] if name in OBSERVATION:
            spec["observation"][name] = value
        case ["groups" | "classes", _, key] if key in _WEIGHTS and "groups" in spec:
            _reweigh(spec, path, value)
        case ["groups", _, "mean" | "variance" as key, *where] if len(where) < 2 and "groups" in spec:
            for group in _groups(spec, path):
                _set(spec, path, group, key, where, value)
        case ["groups", _, "covariance", row, column] if "groups" in spec:
            i, j = (_index(path, x, spec["names"]["coordinates"]) for x in (row, column))
            for group in _groups(spec, path):
                if "covariance" not in group:
                    raise UsageError(f"{path}: the group has a variance, no covariance.")
                group["covariance"][i][j] = group["covariance"][j][i] = value
        case ["captions", key, *where] if key in CAPTIONS and len(where) < 2 and "groups" in spec:
            _set(spec, path, spec["captions"], key, where, value)
        case ["groups", _, "captions", key, *where] if key in CAPTIONS and len(where) < 2 and "groups" in spec:
            for group in _groups(spec, path):
                own = group["captions"].setdefault(key, copy.copy(spec["captions"][key]))
                _set(spec, path, {key: own}, key, where, value)
        case _:
            known = [*spec["parameters"], "observation.sigma_image", *SETTINGS] if "parameters" in spec else [_ALLOWED]
            raise UsageError(f"{path} is no number of the model; its paths are {', '.join(known)}.")


def _set(spec: Spec, path: str, holder: Any, key: str, where: list[str], value: Any) -> None:
    """Set one coordinate of a list, or all if none is named."""
    numbers = holder.get(key)
    if not isinstance(numbers, list):
        raise UsageError(f"{path}: is {numbers!r} in the file; numbers there can be swept.")
    indices = [_index(path, where[0], spec["names"]["coordinates"])] if where else range(len(numbers))
    for j in indices:
        numbers[j] = value


def _index(path: str, part: str, names: list[str]) -> int:
    if part in names:
        return names.index(part)
    if not part.isdecimal() or int(part) >= len(names):
        raise UsageError(f"{path}: {part!r} is none of 0..{len(names) - 1} or of {', '.join(names)}.")
    return int(part)


def _groups(spec: Spec, path: str) -> list[Spec]:
    """The groups that a path names: one, or all by `*`."""
    part = path.split(".")[1]
    return spec["groups"] if part == "*" else [spec["groups"][_index(path, part, spec["names"]["groups"])]]


def _members(spec: Spec, path: str) -> tuple[list[Spec], list[Spec]]:
    """The groups whose total weight a path sets, and those that take up the change."""
    kind, part, _ = path.split(".")
    number = _index(path, part, spec["names"][kind])
    if kind == "classes":
        own = [group for group in spec["groups"] if group["class"] == number]
        return own, [group for group in spec["groups"] if group["class"] != number]
    group = spec["groups"][number]
    others = [x for x in spec["groups"] if x is not group]
    return [group], [x for x in others if x["class"] == group["class"]] or others


def _total(spec: Spec, path: str) -> Any:
    return sum(group[path.split(".")[-1]] for group in _members(spec, path)[0])


def _reweigh(spec: Spec, path: str, value: Any) -> None:
    """Set a group's weight at a fixed weight of its class, or a class's weight.

    The other groups of its class take up the change, in proportion to their weights; if it is alone in its class, all
    other groups do. A class's weight is shared by its groups in their proportions, and taken up by all other groups.
    Weights that are all 0 get equal parts.
    """
    key = path.split(".")[-1]
    own, rest = _members(spec, path)
    if own[0][key] is None:
        raise UsageError(f"{path}: the file gives no {key}.")
    room = sum(group[key] for group in own + rest)
    if (outside := (np.asarray(value) < 0) | (value > room + 1e-9)).any():
        most, got = (np.broadcast_to(x, outside.shape)[outside][0] for x in (room, value))
        raise UsageError(f"{path}: must be in [0, {most:g}], got {got:g}.")
    for groups, total in ((own, value), (rest, np.maximum(room - value, 0.0))):
        before = sum(group[key] for group in groups)
        for group in groups:
            share = np.where(before > 0, group[key] / np.where(before > 0, before, 1.0), 1 / len(groups))
            group[key] = total * share


def label(spec: Spec, path: str) -> str:
    """What a path is, for the axis of a figure and a legend."""
    parts = path.split(".")
    own = spec.get("parameters", ())
    if path not in own and parts[-1] in PARAMETERS and PARAMETERS[parts[-1]].label:
        return PARAMETERS[parts[-1]].label
    if "names" not in spec:
        return path

    def name(kind: str, part: str) -> str:
        return f"all {kind}" if part == "*" else spec["names"][kind][_index(path, part, spec["names"][kind])]

    def coordinate(where: list[str]) -> str:
        return " and ".join(name("coordinates", part) for part in where) or "all coordinates"

    texts = {
        "mention": "captions mention {} (probability)",
        "wrong": "mentions of {} that are wrong (share)",
        "blur": "blur of {} in captions (latent units)",
        "base": "value of {} if not mentioned (latent units)",
    }
    match parts:
        case [kind, part, ("weight" | "shifted_weight") as key]:
            return f"{'weight under the shift' if key == 'shifted_weight' else 'training weight'} of {name(kind, part)}"
        case ["groups", part, ("mean" | "variance" | "covariance") as key, *where]:
            return f"{key} of {coordinate(where)}, {name('groups', part)}"
        case ["groups", part, "captions", key, *where]:
            return f"{texts[key].format(coordinate(where))}, {name('groups', part)}"
        case ["captions", key, *where]:
            return texts[key].format(coordinate(where))
        case ["time"]:
            return "training time (steps times learning rate)"
    return path
