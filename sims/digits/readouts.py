"""Score the trained networks of the paper's digits by digit and by prompt, beside the dial's predictions (X11).

    python -m sims.digits --preset=paper --data=idx:DIR --keep_checkpoints --out runs/paper
    python -m sims.digits.readouts runs/paper/paper --data=idx:DIR

The networks are those after the stages done so far. The whitened rule predicts which digits of the aligned group are
classified wrongly: those next to the other class. It also predicts that prompts which name some colour over-correct
less. Writes readouts.csv and readouts.png beside the run's results.
"""

import dataclasses
import functools
import pathlib
from typing import Any

from absl import flags

from sims.engine import devices
from sims.engine.flags import UsageError, define, path, run_main

SHADES_OF_PROMPTS = tuple(i / 8 for i in range(13))  # b in [0, 1.5]; the class's mean colour is 1.5


def _define_flags() -> None:
    define("data", "builtin", "the run's data: builtin or idx:DIR", str)
    devices.define_process_flags()


def _main(folder: str) -> int:
    devices.start_processes(1)
    print(show(pathlib.Path(path(folder)), flags.FLAGS.data))
    return 0


def show(folder: pathlib.Path, data: str) -> str:
    """Write table and figure into the folder; returns the table as text.

    Raises: UsageError if the folder has no such run.
    """

    from sims.engine import runs, store

    rows = measured(folder, data)
    store.write_csv(folder / "readouts.csv", store.columns(rows))
    figure = drawn(rows)
    runs.save_figure(figure, folder, "readouts", dpi=100)
    lines = ["arm  epochs  kind  group  at  accuracy +- 95%  predicted (whitened: separate, joint)"]
    for r in rows:
        lines.append(f"{r['arm']}  {r['epochs']:g}  {r['kind']}  {r['group']}  {r['at']:g}  {r['accuracy']:.3f} +-"
                     f" {r['half']:.3f}  {r['separate']:.3f}, {r['joint']:.3f}")  # fmt: skip
    return "\n".join([*lines, "", f"Written to {folder}"])


def measured(folder: pathlib.Path, data: str) -> list[dict[str, Any]]:
    """A row for each arm that reads captions, each group, and each digit or prompt.

    A row has the mean over seeds, half its 95% interval, and the predictions for `separate` and `joint` features.
    """
    import jax
    import numpy as np
    import xarray as xr

    from sims.digits import dial, studies, training, vectors
    from sims.digits.arms import ARMS
    from sims.digits.config import ITEMS, PAPER
    from sims.digits.results import interval
    from sims.engine import store

    config, source, setup = _run(folder, data)
    grid = studies.grid_of(config, PAPER, setup, source)
    axes = {name: np.asarray(values[0], np.float32) for name, values in grid.axes.items()}
    point = {"train": source.train, "test": source.test, **axes}
    of = dial.states(source.kinds)
    low, high = vectors.class_values(source.kinds)
    answers = jax.jit(_answers, static_argnums=(0, 1))
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(config.arms_of(PAPER)):
        arm = ARMS[name]
        blocks = [block for block in np.ndindex(*grid.blocks_shape) if block[0] == number]
        kept = {block: store.Checkpoint(folder, "", block) for block in blocks}
        if arm.captions is None or not all(each.path.exists() for each in kept.values()):
            continue
        start = functools.partial(training.start, arm, setup, point=point)
        like = jax.eval_shape(start, jax.random.key(0))
        right, stages = [], set()
        for block, each in kept.items():
            _, state, outcomes = each.read(like)
            stages.add(len(outcomes))
            seeds = grid.region(block)[1]
            for i in range(seeds.stop - seeds.start):
                params = jax.tree.map(lambda x, i=i: x[i], state["params"])
                whole = all(np.isfinite(x).all() for x in jax.tree.leaves(params))
                answered, items = (np.asarray(x) for x in answers(arm, setup, params, point))
                right.append(answered if whole else np.full(answered.shape, np.nan))  # NaN: diverged
        epochs = min(setup.stages[n - 1] for n in stages) / (config.train_size // config.batch_size)
        # (kind, at, colour of the prompt, which prompt, which images, which states)
        shown = [("digit", digit, 0.0, 0, items == digit, of.item == digit) for digit in range(ITEMS)]
        every = np.ones_like(items, bool), np.ones_like(of.item, bool)
        shown += [("prompt", b, b, i, *every) for i, b in enumerate(SHADES_OF_PROMPTS)]
        predict = functools.partial(
            dial.right_of_states, of, policy=arm.captions, kappas=np.zeros(1), p_spu=config.p_spu, masking=setup.masking
        )
        aligned = {"images": np.arange(len(items)) < len(items) // 2, "states": of.label == of.attribute}
        for group in training.GROUPS:
            members, states = (x if group == "aligned" else ~x for x in aligned.values())
            for kind, at, b, prompt, images, cells in shown:
                each = xr.DataArray([answer[prompt, members & images].mean() for answer in right], dims="seed")
                mean, half = (x.item() for x in interval(each))
                row = {"arm": name, "epochs": epochs, "kind": kind, "group": group, "at": at, "accuracy": mean}
                for features in ("separate", "joint"):
                    right_of_states = predict(features=features, prompt=(high - low, 2 * b))
                    row[features] = float(right_of_states[states & cells, 0].mean())
                rows.append(row | {"half": half})
    if not rows:
        raise UsageError(f"{folder} keeps no trained network: run it with --keep_checkpoints.")
    return rows


def _run(folder: pathlib.Path, data: str) -> tuple[Any, Any, Any]:
    """(config, source, setup) of the run in the folder.

    Raises: UsageError if it is another command's or study's run, or the data differs.
    """
    from sims.digits import images, studies
    from sims.digits.config import AXES, GRIDS, PAPER, PRESETS, Config, parse_groups
    from sims.engine import store

    flat = store.read_config(folder)
    if flat.get("command") != "digits" or flat.get("study") != PAPER or flat.get("captions") != "vectors":
        raise UsageError(f"{folder} must be a run of sims.digits, study {PAPER}, with vector captions.")
    own = {f.name for f in dataclasses.fields(Config)} - {"study", "data", "colours", *AXES, *GRIDS.values()}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items() if k in own}
    axes = {axis: float(flat[axis][0]) for axis in AXES}
    config = dataclasses.replace(PRESETS[PAPER], **given, **axes)
    source = images.load(data, parse_groups(config.groups), config.pool)
    if source.digest != flat["digest"]:
        raise UsageError(f"--data={data} differs from the data of the run in {folder}.")
    colours = tuple(tuple(tuple(rgb) for rgb in of) for of in flat["colours"])
    return config, source, dataclasses.replace(studies.setup_of(config, PAPER, source), colours=colours)


def _answers(arm: Any, setup: Any, params: Any, point: Any) -> tuple[Any, Any]:
    """Which answers on the test images are right, (prompts, images), and the images' digits.

    The aligned group's images come first.
    """
    import jax
    import jax.numpy as jnp

    from sims.digits import training, vectors

    tests = training.test_scenes(setup, jax.random.key(0), point)
    features = training.embed_image(arm, setup, params, tests.image)
    low, high = vectors.class_values(setup.kinds)
    prompts = jnp.asarray([[[low, -b], [high, b]] for b in SHADES_OF_PROMPTS], features.dtype)
    prompts = jnp.pad(prompts, ((0, 0), (0, 0), (0, vectors.DIM - 2))).reshape(-1, vectors.DIM)
    scores = features @ training.embed_text(arm, setup, params, prompts).T
    guess = 2 * scores.reshape(len(features), -1, 2).argmax(2) - 1
    return (guess == tests.label[:, None]).T, tests.item


def drawn(rows: list[dict[str, Any]]) -> Any:
    """Each arm's accuracy by digit, and by the colour that prompts name, beside the whitened rule's."""
    import matplotlib.pyplot as plt

    from sims.digits.arms import ARMS
    from sims.engine import style

    arms = list(dict.fromkeys(r["arm"] for r in rows))
    figure, axes = plt.subplots(len(arms), 2, figsize=(10, 3 * len(arms) + 0.8), squeeze=False, sharey=True,
                                layout="constrained")  # fmt: skip
    for line, arm in zip(axes, arms, strict=True):
        for ax, kind in zip(line, ("digit", "prompt"), strict=True):
            for group, (colour, marker) in style.GROUP_LOOKS.items():
                points = [r for r in rows if (r["arm"], r["kind"], r["group"]) == (arm, kind, group)]
                x, y, half = ([r[name] for r in points] for name in ("at", "accuracy", "half"))
                ax.errorbar(x, y, yerr=half, fmt=marker, color=colour, capsize=2, ms=5, label=f"{group}, trained")
                ax.plot(x, [r["joint"] for r in points], "-", color=colour, lw=1, label=f"{group}, whitened rule")
            ax.grid(alpha=0.25, lw=0.6)
            ax.set_ylim(-0.03, 1.03)
        epochs = next(r["epochs"] for r in rows if r["arm"] == arm)
        line[0].set_ylabel(f"{ARMS[arm].label}, {epochs:g} epochs\naccuracy (share correct)", fontsize=9)
    axes[-1, 0].set_xlabel("digit")
    axes[-1, 1].set_xlabel("colour named by the prompt, b")
    axes[0, 1].legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main, operands=("the folder of a run",))
