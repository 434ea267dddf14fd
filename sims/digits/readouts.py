"""What the trained networks of the paper's digits answer, digit by digit and prompt by prompt, beside the dial (X11).

    python -m sims.digits --preset=paper --data=idx:DIR --keep_checkpoints --out runs/paper
    python -m sims.digits.readouts runs/paper/paper --data=idx:DIR

Reads the networks as they are after the stages done so far. The whitened rule says which digits of the aligned group go
wrong, those next to the other class, and that prompts which name some colour, too, over-correct less. Writes
readouts.csv and readouts.png beside the run's results.
"""

import pathlib
from typing import Any

from absl import flags

from sims import devices
from sims.flags import UsageError, define, path, run_main

SHADES_OF_PROMPTS = tuple(i / 8 for i in range(13))  # b in [0, 1.5]; the class's mean colour is 1.5


def _define_flags() -> None:
    define("data", "builtin", "the run's data: builtin or idx:DIR", str)
    devices.define_process_flags()


def _main(folder: str) -> int:
    devices.start_processes(1)
    print(show(pathlib.Path(path(folder)), flags.FLAGS.data))
    return 0


def show(folder: pathlib.Path, data: str) -> str:
    """Write table and figure into the folder; the table as text. Raises: UsageError for what is not such a run."""
    import matplotlib.pyplot as plt

    from sims import results, store

    rows = measured(folder, data)
    store.write_csv(folder / "readouts.csv", store.columns(rows))
    figure = drawn(rows)
    results.save_figure(figure, folder, "readouts", dpi=100)
    plt.close(figure)
    lines = ["arm  epochs  kind  group  at  accuracy +- 95%  predicted (whitened: separate, joint)"]
    for r in rows:
        lines.append(f"{r['arm']}  {r['epochs']:g}  {r['kind']}  {r['group']}  {r['at']:g}  {r['accuracy']:.3f} +-"
                     f" {r['half']:.3f}  {r['separate']:.3f}, {r['joint']:.3f}")  # fmt: skip
    return "\n".join([*lines, "", f"Written to {folder}"])


def measured(folder: pathlib.Path, data: str) -> list[dict[str, Any]]:
    """A row an arm that reads, group, and digit or prompt: mean over seeds, half its 95% interval, two predictions."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    import scipy.stats

    from sims import store
    from sims.digits import dial, images, scenes, studies, training, vectors
    from sims.digits.arms import ARMS
    from sims.digits.config import AXES, ITEMS, PAPER, PRESETS, Config, parse_groups

    flat = store.read_config(folder)
    if flat.get("command") != "digits" or flat.get("study") != PAPER or flat.get("captions") != "vectors":
        raise UsageError(f"{folder} must be a run of sims.digits, study {PAPER}, with vector captions.")
    names = {f.name for f in dataclasses.fields(Config)} - {"study", "arms", "data", "colours"}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items() if k in names - set(AXES)}
    axes = {axis: float(flat[axis][0]) for axis in AXES}
    config = dataclasses.replace(PRESETS[PAPER], **given, **axes)
    source = images.load(data, parse_groups(config.groups), config.pool)
    if source.digest != flat["digest"]:
        raise UsageError(f"--data={data} differs from the data of the run in {folder}.")
    colours = tuple(tuple(tuple(rgb) for rgb in of) for of in flat["colours"])
    setup = dataclasses.replace(studies.setup_of(config, PAPER, source), colours=colours)
    point = {"train": source.train, "test": source.test, **{k: jnp.asarray(v) for k, v in axes.items()}}
    of = dial.states(source.kinds)
    low, high = vectors.class_values(source.kinds)
    found: list[dict[str, Any]] = []
    for number, arm in enumerate(ARMS[name] for name in flat["arms"]):
        file = folder / "checkpoints" / f"{'-'.join(['0'] * (len(AXES) + 2))}.npz"
        file = file.with_name(f"{number}{file.name[1:]}")
        if not arm.reads or arm.captions is None or not file.exists():
            continue
        shape = jax.eval_shape(lambda key, arm=arm: training.start(arm, setup, key, point), jax.random.key(0))
        leaves, tree = jax.tree.flatten(shape)
        with np.load(file, allow_pickle=False) as kept:
            stages, loaded = len(kept["outcomes"]), [kept[f"state_{i}"] for i in range(len(leaves))]

        @jax.jit
        def answers(params: Any, arm: Any = arm) -> tuple[Any, Any]:
            """Right or wrong of each test image, (prompts, groups, images), and their digits."""
            right, items = [], []
            for p_spu in (1.0, 0.0):
                layout = scenes.lay_out(
                    jax.random.key(0), source.test, setup.test, p_spu, colours=setup.colours, once=True
                )
                seen = scenes.render(source.test, layout)
                features = training.embed_image(arm, setup, params, seen.image)
                prompts = jnp.asarray([[[low, -b], [high, b]] for b in SHADES_OF_PROMPTS], features.dtype)
                prompts = jnp.pad(prompts, ((0, 0), (0, 0), (0, vectors.DIM - 2)))
                told = training.embed_text(arm, setup, params, prompts.reshape(-1, vectors.DIM))
                guess = 2 * (features @ told.T).reshape(len(features), -1, 2).argmax(2) - 1
                right.append((guess == seen.label[:, None]).T)
                items.append(seen.item)
            return jnp.stack(right, 1), jnp.stack(items)

        runs = [jax.tree.unflatten(tree, [jnp.asarray(x[i]) for x in loaded]) for i in range(config.seeds)]
        each = [answers(state["params"]) for state in runs]
        right, items = np.stack([np.asarray(r, float) for r, _ in each]), np.asarray(each[0][1])
        whole = [all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"])) for state in runs]
        right[~np.array(whole)] = np.nan  # diverged
        epochs = setup.stages[stages - 1] / (config.train_size // config.batch_size)
        quantile = scipy.stats.t.ppf(0.975, config.seeds - 1) / config.seeds**0.5

        def row(kind: str, group: int, at: float, values: np.ndarray, states: np.ndarray, b: float) -> dict[str, Any]:
            predicted = {}
            for features in ("separate", "joint"):
                settings = (of, features, arm.captions, np.zeros(1), config.p_spu, setup.masking)  # noqa: B023
                predicted[features] = float(dial.right_of_states(*settings, (high - low, 2 * b))[states, 0].mean())
            return {
                "arm": flat["arms"][number],  # noqa: B023
                "epochs": epochs,  # noqa: B023
                "kind": kind,
                "group": training.GROUPS[group],
                "at": at,
                "accuracy": float(values.mean()),
                "half": float(quantile * values.std(ddof=1)),  # noqa: B023
                **predicted,
            }

        for group in range(2):
            of_group = (of.label == of.attribute) == (group == 0)
            for digit in range(ITEMS):
                values = right[:, 0, group][:, items[group] == digit].mean(1)
                found.append(row("digit", group, digit, values, of_group & (of.item == digit), 0.0))
            for i, b in enumerate(SHADES_OF_PROMPTS):
                found.append(row("prompt", group, b, right[:, i, group].mean(1), of_group, b))
    if not found:
        raise UsageError(f"{folder} keeps no trained network: run it with --keep_checkpoints.")
    return found


def drawn(rows: list[dict[str, Any]]) -> Any:
    """Accuracy by digit, and over the colour that prompts name, of each arm, beside the whitened rule's."""
    import matplotlib.pyplot as plt

    from sims.digits.arms import ARMS

    arms = list(dict.fromkeys(r["arm"] for r in rows))
    figure, axes = plt.subplots(len(arms), 2, figsize=(10, 3 * len(arms) + 0.8), squeeze=False, sharey=True,
                                layout="constrained")  # fmt: skip
    for line, arm in zip(axes, arms, strict=True):
        for ax, kind in zip(line, ("digit", "prompt"), strict=True):
            for group, colour, marker in (("aligned", "#E69F00", "o"), ("conflicting", "#0072B2", "s")):
                here = [r for r in rows if (r["arm"], r["kind"], r["group"]) == (arm, kind, group)]
                x, y, half = ([r[name] for r in here] for name in ("at", "accuracy", "half"))
                ax.errorbar(x, y, yerr=half, fmt=marker, color=colour, capsize=2, ms=5, label=f"{group}, trained")
                ax.plot(x, [r["joint"] for r in here], "-", color=colour, lw=1, label=f"{group}, whitened rule")
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
