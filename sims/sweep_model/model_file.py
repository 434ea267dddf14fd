"""Reads a model file, strictly. Imports neither JAX nor plotting, so that --help and refusals are quick.

The spec is the file as a dict in one form: every default filled in, every number a float, every list one number a
coordinate. `paths` changes its numbers, and `check` judges them. A bad entry is one line that names it. A number that
an axis changes may be an array, (cells,), which holds it for many cells at once.
"""

import ast
import json
import math
import pathlib
import re
from typing import Any, NoReturn

import numpy as np

from sims.engine.flags import LARGEST, UsageError

Spec = dict[str, Any]
LEARNERS = ("mmcl", "early_stopped", "whitened", "ridge", "supervised", "probe")
PROMPTS, BASES = ("core", "train_mean"), ("named", "mean", "zero")
CAPTIONS = {"mention": 1.0, "base": "named", "wrong": 0.0, "blur": 0.0}
OBSERVATION = {"dim_image": None, "dim_text": None, "sigma_image": 1.0, "sigma_text": 1.0}
SETTINGS = {"n": 1000.0, "same_class_weight": None, "embed_dim": None, "theta": 1.0, "kappa": 1.0, "time": 5.0}
NAMED = ("classes", "coordinates", "groups")
_DIM = 8
_LARGEST_FILE, _MOST_GROUPS, _MOST_LATENTS, _MOST_NUMBERS = 10**6, 64, 32, 2e8
_ROUNDING = 1e-6
_LONGEST = 100.0
_KEYS = ("groups", "captions", "prompts", "observation", "n", "names")
_GROUP_KEYS = ("class", "weight", "shifted_weight", "mean", "covariance", "variance", "captions")


def read(path: str) -> Spec:
    """The spec of a model file. Raises: UsageError that names the file and the entry."""
    file = pathlib.Path(path)
    readers = {".yaml": _yaml, ".yml": _yaml, ".json": _json, ".py": _python}
    if file.suffix not in readers:
        raise UsageError(f"--model must be the path of a .yaml, .json or .py file, got {path!r}.")
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise UsageError(f"--model={path}: has more than {_LARGEST_FILE:,} bytes.")
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"--model={path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    try:
        content = readers[file.suffix](text)
        return content if file.suffix == ".py" else _filled(content)
    except RecursionError:
        raise UsageError(f"--model={path}: is nested too deeply.") from None
    except UsageError as error:
        raise UsageError(f"--model={path}: {error}") from None


def _bad(entry: str, message: str) -> NoReturn:
    raise UsageError(f"{entry}: {message}.")


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, which also reads 1e-3 as a number."""

    number = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    refused = {yaml.TagToken: "a tag", yaml.AnchorToken: "an anchor", yaml.AliasToken: "an alias"}
    try:
        for token in yaml.scan(text, Loader):
            if type(token) in refused:
                _bad(f"line {token.start_mark.line + 1}", f"{refused[type(token)]} is not allowed")
        loader = Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _check_keys_of_yaml(root)
            return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        _bad(f"line {line}", f"is no YAML ({error.problem})")
    except (yaml.YAMLError, ValueError) as error:
        _bad("the file", f"is no YAML ({' '.join(str(error).split())})")


def _check_keys_of_yaml(node: Any) -> None:
    keys = set()
    for child in node.value if isinstance(node.value, list) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _check_keys_of_yaml(part)
        if isinstance(child, tuple):
            key = child[0]
            line = f"line {key.start_mark.line + 1}"
            if key.tag != "tag:yaml.org,2002:str":
                _bad(line, "a key must be plain text")
            if key.value in keys:
                _bad(line, f"the key {key.value!r} is there twice")
            keys.add(key.value)


def _json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        for i, (key, _) in enumerate(items):
            if key in dict(items[:i]):
                _bad("the file", f"the key {key!r} is there twice")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except ValueError as error:
        _bad("the file", f"is no JSON ({error})")


def _python(text: str) -> Spec:
    """The signature of `model`, read without running the file."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        _bad(f"line {getattr(error, 'lineno', None) or 1}", f"is no Python ({getattr(error, 'msg', error)})")
    function = next((x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "model"), None)
    if function is None:
        _bad("the file", "has no function model(**parameters)")
    given = function.args
    names = [*given.posonlyargs, *given.args][len(given.posonlyargs + given.args) - len(given.defaults) :]
    pairs = [*zip(names, given.defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if len(pairs) < len(given.args) + len(given.posonlyargs) + len(given.kwonlyargs) or any(
        d is None for _, d in pairs
    ):
        _bad("model", "every parameter needs a default value")
    parameters = {}
    for name, default in pairs:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            continue  # no literal: the function has its own default, and it is no path
        if isinstance(value, int | float) and not isinstance(value, bool):
            _number(f"model({name.arg})", value)
            parameters[name.arg] = value  # a whole number stays one
    if taken := sorted({*SETTINGS, *OBSERVATION} & {*parameters}):
        _bad(f"model({taken[0]})", "is a name of the command's own; use another")
    named = [x.value for x in tree.body if isinstance(x, ast.Assign) and ast.unparse(x.targets[0]) == "GROUPS"]
    try:
        groups = ast.literal_eval(named[0]) if named else None
    except ValueError:
        _bad("GROUPS", "must be a list of names")
    return {
        "parameters": parameters,
        "group_names": None if groups is None else _distinct("GROUPS", _list("GROUPS", groups)),
        "source": text,
        "prompts": "core",
        "observation": dict(OBSERVATION),
        **SETTINGS,
    }


def _filled(raw: Any) -> Spec:
    """The spec of the content of a YAML or JSON file."""
    raw = _mapping("the file", raw, _KEYS, needed=("groups",))
    groups = _list("groups", raw["groups"])
    if not 2 <= len(groups) <= _MOST_GROUPS:
        _bad("groups", f"must be 2 to {_MOST_GROUPS} groups, got {len(groups)}")
    first = _mapping("groups[0]", groups[0], _GROUP_KEYS, needed=("class", "weight", "mean"))
    l = len(_list("groups[0].mean", first["mean"]))
    if not 1 <= l <= _MOST_LATENTS:
        _bad("groups[0].mean", f"must have 1 to {_MOST_LATENTS} numbers, got {l}")
    filled = [_group(f"groups[{g}]", group, l) for g, group in enumerate(groups)]
    classes = sorted({group["class"] for group in filled})
    if classes != list(range(len(classes))) or len(classes) < 2:
        _bad("groups", f"classes must be 0, 1, ... without a gap and at least two, got {classes}")
    if len({group["shifted_weight"] is None for group in filled}) > 1:
        _bad("groups", "shifted_weight must be given for all groups or for none")
    sizes = {"classes": len(classes), "coordinates": l, "groups": len(filled)}
    observation = _mapping("observation", raw.get("observation", {}), OBSERVATION)
    return {
        "groups": filled,
        "captions": {**_captions("captions", CAPTIONS, l), **_captions("captions", raw.get("captions", {}), l)},
        "prompts": _prompts(raw.get("prompts", "core"), len(classes), l),
        "observation": {**OBSERVATION, **{k: _number(f"observation.{k}", v) for k, v in observation.items()}},
        "names": _names(raw.get("names", {}), sizes, filled),
        **SETTINGS,
        "n": _number("n", raw.get("n", SETTINGS["n"])),
    }


def _group(entry: str, raw: Any, l: int) -> Spec:
    raw = _mapping(entry, raw, _GROUP_KEYS, needed=("class", "weight", "mean"))
    if isinstance(raw["class"], bool) or not isinstance(raw["class"], int):
        _bad(f"{entry}.class", f"must be a whole number, got {raw['class']!r}")
    if ("covariance" in raw) == ("variance" in raw):
        _bad(entry, "needs covariance (a matrix) or variance (a list), one of them")
    group = {
        "class": raw["class"],
        "weight": _number(f"{entry}.weight", raw["weight"]),
        "shifted_weight": None,
        "mean": _numbers(f"{entry}.mean", raw["mean"], l),
        "captions": _captions(f"{entry}.captions", raw.get("captions", {}), l),
    }
    if "shifted_weight" in raw:
        group["shifted_weight"] = _number(f"{entry}.shifted_weight", raw["shifted_weight"])
    if "variance" in raw:
        return {**group, "variance": _numbers(f"{entry}.variance", raw["variance"], l)}
    rows = _list(f"{entry}.covariance", raw["covariance"], l, "rows")
    return {**group, "covariance": [_numbers(f"{entry}.covariance[{i}]", row, l) for i, row in enumerate(rows)]}


def _captions(entry: str, raw: Any, l: int) -> Spec:
    filled: Spec = {}
    for key, value in _mapping(entry, raw, CAPTIONS).items():
        where = f"{entry}.{key}"
        if key == "base" and isinstance(value, str):
            if value not in BASES:
                _bad(where, f"must be numbers or of {', '.join(BASES)}, got {value!r}")
            filled[key] = value
        else:
            filled[key] = _numbers(where, value, l) if isinstance(value, list) else [_number(where, value)] * l
    return filled


def _prompts(raw: Any, k: int, l: int) -> str | list[list[float]]:
    if isinstance(raw, str):
        if raw not in PROMPTS:
            _bad("prompts", f"must be a list for each class or of {', '.join(PROMPTS)}, got {raw!r}")
        return raw
    rows = _list("prompts", raw, k, "rows, one for each class")
    return [_numbers(f"prompts[{i}]", row, l) for i, row in enumerate(rows)]


def _names(raw: Any, sizes: dict[str, int], groups: list[Spec]) -> dict[str, list[str]]:
    given = _mapping("names", raw, NAMED)
    names = {
        "classes": [f"class {k}" for k in range(sizes["classes"])],
        "coordinates": [f"coordinate {j}" for j in range(sizes["coordinates"])],
        "groups": [f"group {g} (class {group['class']})" for g, group in enumerate(groups)],
    }
    for key, value in given.items():
        names[key] = _distinct(f"names.{key}", _list(f"names.{key}", value, sizes[key], "names"))
    return names


def _distinct(entry: str, names: list[Any]) -> list[str]:
    for i, name in enumerate(names):
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d][\w ,()+-]{0,39}", name):
            _bad(f"{entry}[{i}]", f"must be letters, digits and spaces, a letter first, got {name!r}")
        if name in names[:i] or name in ("train", "shifted"):
            _bad(f"{entry}[{i}]", f"must differ from the others and from train and shifted, got {name!r}")
    return names


def _mapping(entry: str, raw: Any, keys: Any, needed: tuple[str, ...] = ()) -> Spec:
    if not isinstance(raw, dict):
        _bad(entry, f"must have the keys {', '.join(keys)}, got {raw!r}")
    for key in raw:
        if key not in keys:
            _bad(entry, f"has the unknown key {key!r}; the keys are {', '.join(keys)}")
    for key in needed:
        if key not in raw:
            _bad(entry, f"needs {key}")
    return raw


def _list(entry: str, raw: Any, length: int | None = None, of: str = "numbers") -> list[Any]:
    if not isinstance(raw, list):
        _bad(entry, f"must be a list, got {raw!r}")
    if length is not None and len(raw) != length:
        _bad(entry, f"must have {length} {of}, got {len(raw)}")
    return raw


def _numbers(entry: str, raw: Any, length: int) -> list[float]:
    return [_number(f"{entry}[{i}]", value) for i, value in enumerate(_list(entry, raw, length))]


def _number(entry: str, raw: Any) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        _bad(entry, f"must be a number, got {raw!r}")
    if not abs(raw) <= LARGEST:
        _bad(entry, f"must be finite and at most {LARGEST:g} in size, got {raw!r}")
    return float(raw)


def latents_of(spec: Spec) -> int | None:
    """l; None for a Python file, of which only a call tells."""
    return len(spec["groups"][0]["mean"]) if "groups" in spec else None


def stacked(nested: Any) -> np.ndarray:
    """Nested lists of numbers as an array of their shape; with arrays (cells,) among them, (cells, *shape)."""
    shape: list[int] = []
    flat = [nested]
    while isinstance(flat[0], list):
        shape.append(len(flat[0]))
        flat = [x for each in flat for x in each]
    values = np.stack(np.broadcast_arrays(*flat), axis=-1)
    return values.reshape(*values.shape[:-1], *shape)


def dimensions(spec: Spec, latents: int) -> tuple[Any, Any]:
    """d_I and d_T: those given, or else 8, or l if that is more."""
    image, text = (spec["observation"][name] for name in ("dim_image", "dim_text"))
    default = max(_DIM, latents)
    return default if image is None else image, default if text is None else text


def check(spec: Spec) -> None:
    """Raise UsageError that names an entry whose number is out of range."""
    if "groups" in spec:
        _check_groups(spec)
    check_settings(spec, latents_of(spec))


def check_settings(spec: Spec, latents: int | None) -> None:
    """Sizes, noise and the learners' settings. latents: None if they are not known yet."""
    for name, value in spec["observation"].items():
        if name.startswith("sigma"):
            _in(f"observation.{name}", value, 0)
        elif value is not None:
            _in(f"observation.{name}", value, max(2, latents or 2), whole=True)
    _in("n", spec["n"], 2, whole=True)
    if (numbers := np.max(spec["n"] * sum(dimensions(spec, latents or 2)))) > _MOST_NUMBERS:
        _bad("n", f"times d_I + d_T must be at most {_MOST_NUMBERS:g}, got {numbers:g}")
    for name, most in (("same_class_weight", 1.0), ("theta", 1.0), ("kappa", math.inf), ("time", _LONGEST)):
        if spec[name] is not None:
            _in(name, spec[name], 0, most)
    if spec["embed_dim"] is not None:
        _in("embed_dim", spec["embed_dim"], 1, latents or math.inf, whole=True)
        if spec["same_class_weight"] is not None:
            _bad("embed_dim", "has no theory together with same_class_weight; use one of them")


def _check_groups(spec: Spec) -> None:
    groups = spec["groups"]
    number = np.array([group["class"] for group in groups])
    for key in ("weight", "shifted_weight"):
        if groups[0][key] is None:
            continue
        for g, group in enumerate(groups):
            _in(f"groups[{g}].{key}", group[key], 0)
        weights = stacked([group[key] for group in groups])
        totals = weights.sum(-1)
        if (wrong := abs(totals - 1) > _ROUNDING).any():
            _bad(f"groups: {key}", f"must sum to 1, got {totals[wrong][0]:g}")
        for k in range(number.max() + 1):
            if not (weights[..., number == k].sum(-1) > 0).all():
                _bad(f"groups: {key}", f"must be > 0 in class {k}, got 0")
    for g, group in enumerate(groups):
        for j, value in enumerate(group.get("variance", ())):
            _in(f"groups[{g}].variance[{j}]", value, 0)
        if "covariance" in group:
            _check_covariance(f"groups[{g}].covariance", stacked(group["covariance"]))
    own = {f"groups[{g}].captions": group["captions"] for g, group in enumerate(groups)}
    for entry, captions in {"captions": spec["captions"], **own}.items():
        for key, most in (("mention", 1.0), ("wrong", 1.0), ("blur", math.inf)):
            for j, value in enumerate(captions.get(key, ())):
                _in(f"{entry}.{key}[{j}]", value, 0, most)


def _check_covariance(entry: str, matrix: np.ndarray) -> None:
    scale = np.abs(matrix).max((-2, -1))
    if (np.abs(matrix - matrix.mT).max((-2, -1)) > _ROUNDING * scale).any():
        _bad(entry, "must be symmetric")
    least = np.linalg.eigvalsh(matrix)[..., 0]
    if (negative := least < -_ROUNDING * scale).any():
        _bad(entry, f"must be positive semi-definite, got eigenvalue {least[negative][0]:g}")


def _in(entry: str, value: Any, least: float, most: float = math.inf, whole: bool = False) -> None:
    kind = "a whole number " if whole else ""
    allowed = f"{kind}in [{least:g}, {most:g}]" if most < math.inf else f"{kind}>= {least:g}"
    values = np.asarray(value)
    if (wrong := ~((least <= values) & (values <= most)) | (whole & (values % 1 != 0))).any():
        _bad(entry, f"must be {allowed}, got {values[wrong][0]:g}")
