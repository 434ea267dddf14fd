"""Figures of the digits' studies: theory as lines, measurement as points with 95% intervals over seeds."""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sims.digits import images, paper, regimes, results, scenes, training
from sims.digits.arms import ARMS
from sims.digits.config import BALANCED, PAPER
from sims.engine import style
from sims.lines import draw as draw_lines

_LOOKS = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", (0, (5, 1, 1, 1))),
    ("#56B4E9", "P", (0, (1, 1))),
]
_RULE_NAMES = {
    "linear_pixels": "linear loss, pixels",
    "whitened_pixels": "whitened, pixels",
    "linear_features": "linear loss, two features",
    "whitened_features": "whitened, two features",
}
_RULE_DASHES = {"linear": ":", "whitened": "-"}
_SAMPLES = 12
_ACCURACY = "accuracy (share correct)"
_AXIS_NAMES = {
    "p_spu": r"$p_{\mathrm{spu}}$ in training (probability)",
    "pi_core": r"captions name each core detail, $\pi_{\mathrm{core}}$ (probability)",
    "pi_spu": r"captions name the background, $\pi_{\mathrm{spu}}$ (probability)",
    "hue_contrast": "contrast of the two hues (share of blue to orange)",
    "same_class_weight": r"same-class weight $\lambda$ (share of negatives' weight)",
    "temperature": r"temperature $\tau$, fixed",
    "step": "training steps",
}
_NETWORKS = ("clip", "clip_linear")


def of(study: str, dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of a study, by file name."""
    if study == PAPER:
        both = {f"figure_{number}": paper.against_paper(dataset, name) for name, number in paper.FIGURES.items()}
        more = {"dial": paper.along_dial(dataset)} if any(ARMS[a].reads for a in dataset.arm.values) else {}
        return {**both, **more, "training": paper.along_training(dataset)}
    if study == "arms":
        matched = results.lines_of(dataset)
        drawn = {"lines": draw_lines(matched, None, "probit", 1.0)} if matched else {}
        return {"arms": arms(dataset), "features": features(dataset), **drawn}
    if study == "captions":
        networks = [a for a in _NETWORKS if a in dataset.arm.values]
        lines = {"pi_core": against_pi_core(dataset, networks), "drift": drift(dataset, networks)} if networks else {}
        return {"captions": caption_map(dataset), **lines}
    if study == BALANCED:
        return {"balanced": balanced(dataset)}
    if study == "temperature":
        return {"temperature": against_time(dataset)}
    if study == "sharing":
        return {"sharing": sharing(dataset)}
    axis = {"correlation": "p_spu", "contrasting": "same_class_weight", "strength": "hue_contrast"}[study]
    more = {"regimes": regimes.drawn(dataset)} if study == "correlation" and regimes.cells(dataset) else {}
    return {study: against(dataset, axis), **more}


def samples(setup: training.Setup, source: images.Source) -> Figure:
    """Training scenes with captions that name each detail half the time; aligned scenes first."""
    n = _SAMPLES
    key_scene, key_text = jax.random.split(jax.random.key(0))
    p_spu = np.repeat([1.0, 0.0], n // 2)
    p_companion = 0.7 if setup.companion else None
    drawn = scenes.draw(key_scene, source.train, n, p_spu, p_companion=p_companion, colours=setup.colours,
                        core_accuracy=setup.core_accuracy)  # fmt: skip
    texts = np.asarray(training.write(setup, key_text, drawn, training.mt.captions(0.5, 0.5), 0.5))
    figure, axes = plt.subplots(2, n // 2, figsize=(13, 5.6), layout="constrained")
    for i, ax in enumerate(axes.flat):
        ax.imshow(np.clip(np.asarray(drawn.image[i]), 0, 1))
        caption = f"[{texts[i, 0]:.2f}, {texts[i, 1]:.2f}, ...]" if setup.vectors else setup.words.decode(texts[i])
        ax.set_title(_folded(caption), fontsize=8)
        ax.set_axis_off()
    for row, name in zip((0, 1), ("aligned", "conflicting"), strict=True):
        axes[row, 0].text(-0.12, 0.5, name, transform=axes[row, 0].transAxes, rotation=90, va="center", fontsize=11)
    return figure


def _folded(caption: str) -> str:
    words, lines = caption.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 20:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def arms(dataset: xr.Dataset) -> Figure:
    """Both groups of every arm after the last step, with 95% intervals, under its headline prompt."""
    mean, half = results.interval(results.by_headline(results.accuracy(dataset)).isel(step=-1))
    names = [str(a) for a in dataset.arm.values]
    figure, ax = plt.subplots(figsize=(9, 0.42 * len(names) + 1.6), layout="constrained")
    for group, (colour, marker) in style.GROUP_LOOKS.items():
        m, h = (x.sel(value=group).values.reshape(len(names)) for x in (mean, half))
        place = np.arange(len(names)) + (0.12 if group == "conflicting" else -0.12)
        ax.errorbar(m, place, xerr=h, fmt=marker, color=colour, ms=6, capsize=2, lw=1, label=f"{group} group")
    ax.set_yticks(range(len(names)), [ARMS[a].label for a in names], fontsize=9)
    ax.invert_yaxis()
    ax.axvline(0.5, color="0.6", lw=0.8, zorder=0)
    ax.set_xlabel(f"{_ACCURACY}; mean and 95% interval over {dataset.sizes['seed']} seeds")
    ax.set_xlim(-0.02, 1.02)
    ax.grid(alpha=0.25, lw=0.6)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def features(dataset: xr.Dataset) -> Figure:
    """What a linear probe on P* finds in each arm's image embedding after the last step."""
    names = [str(a) for a in dataset.arm.values]
    names_of = [name for name in training.FEATURES if name != "companion"]
    probes = dataset.measured.isel(step=-1).sel(measure=names_of)
    mean, _ = results.interval(probes)
    value = mean.transpose("arm", ..., "measure").values.reshape(len(names), -1)
    figure, ax = plt.subplots(figsize=(9, 0.42 * len(names) + 1.4), layout="constrained")
    image = ax.imshow(value, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(*value.shape):
        colour = "white" if value[i, j] < 0.6 else "black"
        ax.text(j, i, f"{value[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour)
    labels = [f"{name}\n(chance {0.1 if name == 'item' else 0.5:g})" for name in names_of]
    ax.set_xticks(range(len(labels)), labels, fontsize=9)
    ax.set_yticks(range(len(names)), [ARMS[a].label for a in names], fontsize=9)
    figure.colorbar(image, label="accuracy of a linear probe (share correct)")
    return figure


def caption_map(dataset: xr.Dataset) -> Figure:
    """Aligned minus conflicting accuracy over what captions name; over-correction, below 0, is orange.

    Measured networks and both theories are in the same colours.
    """
    accuracy = results.accuracy(dataset).isel(step=-1)
    panels: list[tuple[str, np.ndarray]] = []
    for arm in (a for a in _NETWORKS if a in dataset.arm.values):
        mean = accuracy.sel(arm=arm, prompt="ensemble").mean("seed")
        gap = mean.sel(value="aligned") - mean.sel(value="conflicting")
        panels.append((f"{ARMS[arm].label}, trained", _plane(gap)))
    for theory, name in _RULE_NAMES.items():
        mean = dataset.accuracy_predicted.sel(theory=theory, predicted_prompt="ensemble").isel(arm=0)  # all are equal
        gap = mean.sel(group="aligned") - mean.sel(group="conflicting")
        panels.append((f"predicted: {name}", _plane(gap)))
    figure, axes = plt.subplots(2, -(-len(panels) // 2), figsize=(12, 7.6), layout="constrained", squeeze=False)
    core, spu = dataset.pi_core.values, dataset.pi_spu.values
    image: Any = None
    for ax, (title, value) in zip(axes.flat, panels, strict=False):
        image = ax.imshow(value, cmap="PuOr", vmin=-1, vmax=1, origin="lower", aspect="auto")
        for i, j in np.ndindex(*value.shape):
            ax.text(j, i, f"{value[i, j]:+.2f}", ha="center", va="center", fontsize=8, color="black",
                    bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.7})  # fmt: skip
        ax.set_xticks(range(len(spu)), [f"{v:g}" for v in spu])
        ax.set_yticks(range(len(core)), [f"{v:g}" for v in core])
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(r"$\pi_{\mathrm{spu}}$, background named (probability)", fontsize=9)
        ax.set_ylabel(r"$\pi_{\mathrm{core}}$, core details named (probability)", fontsize=9)
    figure.colorbar(
        image, ax=axes, label="aligned minus conflicting accuracy (above 0: shortcut; below: over-correction)"
    )
    return figure


def _plane(values: xr.DataArray) -> np.ndarray:
    """The values of a map, (pi_core, pi_spu), whose other axes have one value."""
    return values.transpose("pi_core", "pi_spu", ...).values.reshape(values.sizes["pi_core"], values.sizes["pi_spu"])


def against_pi_core(dataset: xr.Dataset, arms: list[str]) -> Figure:
    """Accuracy of both groups against pi_core for each arm, a line for each pi_spu."""
    figure, axes = plt.subplots(len(arms), 2, figsize=(11, 3.9 * len(arms)), sharey=True, layout="constrained",
                                squeeze=False)  # fmt: skip
    mean, half = results.interval(results.by_headline(results.accuracy(dataset)).isel(step=-1))
    for row, arm in zip(axes, arms, strict=True):
        for ax, group in zip(row, training.GROUPS, strict=True):
            for i, pi_spu in enumerate(dataset.pi_spu.values):
                both = [x.sel(arm=arm, value=group, pi_spu=pi_spu).values.ravel() for x in (mean, half)]
                _line(ax, dataset.pi_core.values, *both, i, rf"$\pi_{{\mathrm{{spu}}}}$ = {pi_spu:g}")
            _axes(ax, "pi_core", f"{ARMS[arm].label}: {style.PANELS[group]}")
        row[0].set_ylabel(_ACCURACY)
    _legend(figure, axes[0, 0])
    return figure


def drift(dataset: xr.Dataset, arms: list[str]) -> Figure:
    """Mean distance of each theory from the arms' accuracies along training, over both groups and all cells."""
    figure, axes = plt.subplots(1, len(arms), figsize=(5 * len(arms), 4), sharey=True, layout="constrained",
                                squeeze=False)  # fmt: skip
    scores = results.scores(dataset)
    for ax, arm in zip(axes[0], arms, strict=True):
        for i, (theory, name) in enumerate(_RULE_NAMES.items()):
            scored = [s for s in scores if s.arm == arm and s.theory == theory]
            colour, marker, _ = _LOOKS[i % 2]
            look = {"color": colour, "marker": marker, "mfc": colour if "pixels" in theory else "white"}
            ax.plot([s.step for s in scored], [s.error for s in scored], ls="-" if "pixels" in theory else "--", **look,
                    label=name)  # fmt: skip
        ax.set_xscale("log")
        ax.set_title(f"{ARMS[arm].label}, trained", fontsize=10)
        ax.set_xlabel(_AXIS_NAMES["step"])
        ax.set_ylim(0, None)
        ax.grid(alpha=0.25, lw=0.6)
    axes[0, 0].set_ylabel("mean |predicted - measured| accuracy")
    _legend(figure, axes[0, 0])
    return figure


def against(dataset: xr.Dataset, axis: str) -> Figure:
    """Accuracy of both groups of every arm against an axis, with both theories on pixels (the linear one dotted)."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    mean, half = results.interval(results.by_headline(results.accuracy(dataset)).isel(step=-1))
    x = dataset[axis].values
    for ax, group in zip(axes, training.GROUPS, strict=True):
        for i, arm in enumerate(str(a) for a in dataset.arm.values):
            both = [v.sel(arm=arm, value=group).values.ravel() for v in (mean, half)]
            _line(ax, x, *both, i, f"{ARMS[arm].label}, trained")
        _theory(ax, dataset, x, group)
        _axes(ax, axis, style.PANELS[group])
    axes[0].set_ylabel(_ACCURACY)
    _legend(figure, axes[0])
    return figure


def sharing(dataset: xr.Dataset) -> Figure:
    """How each arm classifies and what its embedding keeps, with and without a small digit, named or not."""
    laws = [(there, named) for there in dataset.p_companion.values for named in dataset.pi_companion.values]
    panels = {
        "conflicting": style.PANELS["conflicting"],
        "item": "which digit: a linear probe of the embedding",
        "companion": "which small digit: a linear probe (chance 0.1)",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13.5, 4.8), sharey=True, layout="constrained")
    groups = results.interval(results.by_headline(results.accuracy(dataset)).isel(step=-1))
    kept = results.interval(dataset.measured.isel(step=-1))
    for i, arm in enumerate(str(a) for a in dataset.arm.values):
        colour, marker, _ = _LOOKS[i]
        for ax, name in zip(axes, panels, strict=True):
            both, dim = (groups, "value") if name == "conflicting" else (kept, "measure")
            at = [{"arm": arm, "p_companion": there, "pi_companion": named, dim: name} for there, named in laws]
            mean, half = ([x.sel(where).item() for where in at] for x in both)
            place = np.arange(len(laws)) + 0.1 * i
            ax.errorbar(place, mean, half, fmt=marker, color=colour, ms=6, capsize=3, label=ARMS[arm].label)
    names = [f"there {there:g}\nnamed {named:g}" for there, named in laws]
    for ax, title in zip(axes, panels.values(), strict=True):
        ax.set_xticks(range(len(names)), names, fontsize=9)
        ax.set_xlabel("small digit (probabilities)")
        ax.set_title(title, fontsize=10)
        ax.set_ylim(-0.03, 1.03)
        ax.grid(alpha=0.25, lw=0.6)
    axes[0].set_ylabel(f"{_ACCURACY}; 95% intervals over seeds")
    _legend(figure, axes[0])
    return figure


def _theory(ax: Axes, dataset: xr.Dataset, x: np.ndarray, group: str) -> None:
    """Draw both theories on pixels: one line for all arms where their predictions agree, else one for each arm."""
    arms = [str(a) for a in dataset.arm.values if ARMS[str(a)].reads]
    for name, dashes in _RULE_DASHES.items():
        at = {"theory": f"{name}_pixels", "predicted_prompt": "ensemble", "group": group}
        lines = [dataset.accuracy_predicted.sel(at, drop=True).sel(arm=arm).values.ravel() for arm in arms]
        alike = all(np.array_equal(line, lines[0], equal_nan=True) for line in lines)
        for i, line in enumerate(lines[:1] if alike else lines):
            if np.isnan(line).all():
                continue
            label = f"{name} theory" if alike else f"{ARMS[arms[i]].label}: {name} theory"
            colour = "0.3" if alike else _LOOKS[list(dataset.arm.values).index(arms[i])][0]
            ax.plot(x, line, dashes, color=colour, lw=1.6, label=label, zorder=1)


def against_time(dataset: xr.Dataset) -> Figure:
    """Accuracy of both groups along training, for each fixed temperature; both theories are horizontal lines."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    mean, half = results.interval(results.by_headline(results.accuracy(dataset)))
    arm = str(dataset.arm.values[0])
    for ax, group in zip(axes, training.GROUPS, strict=True):
        for i, temperature in enumerate(dataset.temperature.values):
            at = {"arm": arm, "value": group, "temperature": temperature}
            both = [v.sel(at).transpose("step", ...).values.ravel() for v in (mean, half)]
            _line(ax, dataset.step.values, *both, i, rf"$\tau$ = {temperature:g}")
        for name, dashes in _RULE_DASHES.items():
            of_theory = {"theory": f"{name}_pixels", "arm": arm, "predicted_prompt": "ensemble", "group": group}
            level = dataset.accuracy_predicted.sel(of_theory).values.ravel()[0]
            ax.axhline(level, color="0.4", ls=dashes, lw=1.2, label=f"{name} theory, pixels", zorder=0)
        ax.set_xscale("log")
        _axes(ax, "step", style.PANELS[group])
    axes[0].set_ylabel(_ACCURACY)
    _legend(figure, axes[0])
    return figure


def balanced(dataset: xr.Dataset) -> Figure:
    """Both groups of each caption policy over temperatures, by the class prompt and by the regression prompt.

    Lines are the dial's whitened rule for an encoder that sees all 60 states apart.
    """
    arms = [str(arm) for arm in dataset.arm.values]
    figure, axes = plt.subplots(1, len(arms), figsize=(4 * len(arms), 4.6), sharey=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    accuracy = results.accuracy(dataset).isel(step=-1)
    x = dataset.temperature.values
    for ax, arm in zip(axes[0], arms, strict=True):
        for group, (colour, marker) in style.GROUP_LOOKS.items():
            for prompt, face, aside in (("class", colour, 0.94), ("regression", "white", 1.06)):
                if prompt in accuracy.prompt.values:
                    both = results.interval(accuracy.sel(arm=arm, prompt=prompt, value=group))
                    mean, half = (each.values.ravel() for each in both)
                    ax.errorbar(x * aside, mean, half, fmt=marker, color=colour, mfc=face, capsize=2, ms=6,
                                label=f"{group}, {prompt} prompt")  # fmt: skip
            whitened = dataset.dial.sel(arm=arm, features="joint", group=group).isel(kappa=0).item()
            ax.axhline(
                whitened, color=colour, ls="--" if group == "aligned" else ":", lw=1.2, label=f"{group}, whitened rule"
            )
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        ax.minorticks_off()
        _axes(ax, "temperature", ARMS[arm].label)
    axes[0, 0].set_ylabel(f"{_ACCURACY}; 95% intervals over seeds")
    _legend(figure, axes[0, 0])
    return figure


def _line(ax: Axes, x: np.ndarray, mean: np.ndarray, half: np.ndarray, i: int, label: str) -> None:
    colour, marker, _ = _LOOKS[i % len(_LOOKS)]
    look = {"fmt": marker, "ls": "-", "lw": 0.6, "elinewidth": 1, "capsize": 2, "ms": 5.5}
    ax.errorbar(x, mean, half, color=colour, label=label, zorder=3 + i, **look)


def _axes(ax: Axes, x: str, title: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(_AXIS_NAMES[x])
    ax.set_ylim(-0.03, 1.03)
    ax.grid(alpha=0.25, lw=0.6)


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
