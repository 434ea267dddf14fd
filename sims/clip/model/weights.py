"""CLIP's variables from and to a PyTorch state dict, with the names of open_clip and of OpenAI.

    here (under params or batch_stats)              there
    visual/layer1_0/conv1/kernel  (in, out)         visual.layer1.0.conv1.weight  (out, in, 1, 1)
    visual/layer1_0/conv2/kernel  (3, 3, in, out)   visual.layer1.0.conv2.weight  (out, in, 3, 3)
    visual/layer1_0/bn1/scale, mean                 visual.layer1.0.bn1.weight, .running_mean
    text/.../mlp_c_fc/kernel      (in, out)         transformer.resblocks.0.mlp.c_fc.weight  (out, in)
    visual/conv1/kernel of a ViT  (p p 3, out)      visual.conv1.weight  (out, 3, p, p)

Files: safetensors or npz, which hold numbers and nothing else. A PyTorch pickle can run any code, and is refused.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.traverse_util
import numpy as np

from sims.clip.model.models import Architecture, ViTShape, variable_shapes
from sims.clip.records.reading import brief, foreign
from sims.engine.flags import UsageError

# OpenAI's archives hold these numbers beside the weights.
_SCALARS = ("input_resolution", "context_length", "vocab_size")
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "d = torch.load('{0}', map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "s.save_file({{k.removeprefix('module.'): v.contiguous() for k, v in d.items()}}, '{1}')\""
    " (OpenAI's own archives: d = torch.jit.load('{0}', map_location='cpu').state_dict())"
)


class _Entry(NamedTuple):
    """One array: its path here, its name and shape there, and the conversions both ways."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def import_state_dict(source: str | os.PathLike | Mapping[str, np.ndarray], arch: Architecture) -> dict:
    """Variables of CLIP(arch), float32 NumPy arrays, from a .safetensors or .npz file or a mapping of arrays.

    Any floating type is read. num_batches_tracked and OpenAI's scalars are left out.

    Raises: UsageError for an unreadable file, or an entry that is missing, unknown, misshapen or not finite. Also for
    OpenAI's own archive, recognised by its scalars, if arch.quick_gelu is false.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    given = dict(source if isinstance(source, Mapping) else _read(Path(source), state_dict_shapes(arch)))
    if not arch.quick_gelu and (scalar := next((name for name in _SCALARS if name in given), None)):
        raise UsageError(f"{where}: holds {scalar}, as OpenAI's own weights do, which compute with the quick GELU; give"
                         f" --architecture={arch.name}-quickgelu.")  # fmt: skip
    given = {n: x for n, x in given.items() if n not in _SCALARS and not n.endswith("num_batches_tracked")}
    flat = {}
    for entry in _entries(arch):
        if entry.name not in given:
            raise UsageError(f"{where}: no entry {entry.name}, which {arch.name} needs; {_mend(given)}.")
        x = np.asarray(given.pop(entry.name))
        if x.shape != entry.shape:
            raise UsageError(f"{where}: {entry.name} is {x.shape}, where {arch.name} has {entry.shape}; {_mend(None)}.")
        if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
            raise UsageError(f"{where}: {entry.name} holds {x.dtype}, not floating-point numbers.")
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise UsageError(f"{where}: {entry.name} holds numbers that are not finite; write the file again.")
        flat[entry.path] = np.asarray(entry.read(x), order="C")
    if given:
        raise UsageError(
            f"{where}: {brief(min(given))} is no entry of {arch.name} ({len(given)} such); {_mend(given)}."
        )
    return flax.traverse_util.unflatten_dict(flat)


def export_state_dict(variables: Mapping, arch: Architecture) -> dict[str, np.ndarray]:
    """The inverse of import_state_dict: float32 arrays under open_clip's names, with num_batches_tracked 0."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    out = {e.name: np.asarray(e.write(np.asarray(flat[e.path], np.float32)), order="C") for e in _entries(arch)}
    return out | {name: np.zeros((), np.int64) for name in state_dict_shapes(arch) if name not in out}


def state_dict_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's state dict of this architecture."""
    shapes = {entry.name: entry.shape for entry in _entries(arch)}
    counters = {n.replace("running_mean", "num_batches_tracked"): () for n in shapes if n.endswith("running_mean")}
    return shapes | counters


def _entries(arch: Architecture) -> Iterator[_Entry]:
    for path, leaf in flax.traverse_util.flatten_dict(variable_shapes(arch)).items():
        name, shape = _torch_name(path), tuple(leaf.shape)
        if path[-1] == "kernel" and len(shape) == 4:
            in_torch = tuple(shape[i] for i in _OIHW)
            yield _Entry(path, name, in_torch, lambda x: x.transpose(_HWIO), lambda x: x.transpose(_OIHW))
        elif isinstance(arch.vision, ViTShape) and name == "visual.conv1.weight":
            p = arch.vision.patch
            yield _Entry(
                path, name, (shape[1], 3, p, p), lambda x: x.transpose(_HWIO).reshape(-1, len(x)),
                lambda x, p=p: x.reshape(p, p, 3, -1).transpose(_OIHW),
            )  # fmt: skip
        elif path[-1] == "kernel" and re.search(r"\.layer\d", name):  # a 1 x 1 convolution
            yield _Entry(path, name, (*shape[::-1], 1, 1), lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
        elif path[-1] == "kernel":
            yield _Entry(path, name, shape[::-1], np.transpose, np.transpose)
        else:
            yield _Entry(path, name, shape, np.asarray, np.asarray)


_OIHW, _HWIO = (3, 2, 0, 1), (2, 3, 1, 0)  # transposes of a convolution's kernel, to PyTorch's order and from it
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _torch_name(path: tuple[str, ...]) -> str:
    *modules, leaf = path[1:]
    name = ".".join([*(m for m in modules if m != "text"), _LEAVES.get(leaf, leaf)])
    name = re.sub(r"\b(resblocks|layer\d+|downsample)_(\d+)", r"\1.\2", name)
    name = re.sub(r"\b(mlp|attn)_(c_fc|c_proj|in_proj|out_proj)", r"\1.\2", name)
    return name.replace("in_proj.", "in_proj_").replace("token_embedding", "token_embedding.weight")


def _mend(given: Mapping | None) -> str:
    if given and any(n.startswith("module.") for n in given):
        return "take the prefix module. off its names"
    return "give the weights of this architecture, or the architecture of these weights"


def _read(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    if path.suffix not in (".safetensors", ".npz"):
        raise UsageError(
            f"{path}: weights must be a .safetensors or .npz file, since a PyTorch pickle can run any code; convert it "
            f"where you trust it: {_CONVERT.format(path, path.with_suffix('.safetensors'))}."
        )
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {name.removesuffix(".npy"): _entry_of(archive, name, wanted) for name in archive.namelist()}
        import safetensors.numpy

        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.") from None
    except Exception as error:  # a damaged file fails in many ways
        why = _foreign(path) or brief(error).rstrip(".")
        raise UsageError(f"{path}: not readable as {path.suffix[1:]} ({why}); download it again.") from None


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _entry_of(archive: zipfile.ZipFile, name: str, wanted: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """An array of an .npz, if it has the wanted shape; else an array of its shape that takes no memory.

    A few bytes can unpack to any number of zeros, so an array of an unwanted shape is not read.
    """
    with archive.open(name) as file:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.hasobject or dtype.itemsize > 16:
        raise ValueError(f"{name} holds {dtype}")
    if wanted.get(name.removesuffix(".npy")) != shape:
        return np.broadcast_to(np.zeros((), dtype), shape)
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _foreign(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if start.startswith(b"PK"):
        return None if path.suffix == ".npz" else "it is a zip archive, as .npz files and PyTorch's pickles are"
    return foreign(start)
