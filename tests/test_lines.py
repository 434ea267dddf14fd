"""The command `mmcl lines`: the paper's differences at matched ID accuracy, any table of points, and refusals."""

import csv
import functools

import numpy as np
import pytest

from sims import lines as command
from sims.engine import lines
from tests.helpers import assert_refused, contents


@pytest.fixture
def call(mmcl):
    return functools.partial(mmcl, command)


def arms_of(spec, transform="plain"):
    return command.grouped(command.paper_points(spec, "points"), transform, 100.0, spec)


@pytest.mark.parametrize("transform", command.TRANSFORMS)
@pytest.mark.parametrize(("dataset", "with_intra", "without"), [("coco", 6.8, 4.2), ("cc", 6.9, 4.9)])
def test_the_papers_differences_at_matched_id_are_those_of_its_curves(transform, dataset, with_intra, without):
    """At ID = 20 in Figure 3c, on any axes; twin: the fitted line gives other numbers."""
    curve, line = (
        next(row for row in command.compare(arms_of(f"paper:3c:{dataset}", transform), [0.2], transform, 100.0)
             if row["reading"] == reading)
        for reading in ("curve", "line")
    )  # fmt: skip
    assert (line["first"], line["second"]) == ("clip_scratch", "clip_scratch_no_intra")
    assert (round(curve["first_ood"], 1), round(curve["second_ood"], 1)) == (with_intra, without)
    assert (round(line["first_ood"], 1), round(line["second_ood"], 1)) != (with_intra, without)
    assert curve["difference"] == pytest.approx(curve["first_ood"] - curve["second_ood"])
    assert not curve["extrapolated"] and np.isnan(curve["low"]) and line["low"] > 0


def test_the_papers_figures_have_arms_in_common_ranges_or_not():
    """CLIP's and SL's ID accuracies do not meet in Figure 3a: lines are extrapolated, and curves end before."""
    rows = command.compare(arms_of("paper:3a,3b:coco"), None, "plain")
    apart = {(row["second"], row["reading"]): row for row in rows if row["first"] == "clip"}
    assert apart["supervised", "line"]["extrapolated"] and np.isnan(apart["supervised", "curve"]["difference"])
    assert not apart["clip_labels", "curve"]["extrapolated"] and apart["clip_labels", "curve"]["difference"] > 0
    assert {len(arms) for arms in arms_of("paper:7").values()} == {8}


def test_the_transforms_are_the_engines():
    assert set(command.TRANSFORMS) == set(lines.TRANSFORMS)


def write(path, arms, scale=1.0):
    """A table of two sets; `arms` has (x, y of both sets, seed) for each arm."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "val", "sketch", "r", "loss", "seed"])
        for arm, points in arms.items():
            for x, y, z, seed in points:
                writer.writerow(["a", scale * x, scale * y, scale * z, arm, seed])


def points_of(intercept, drawn, seeds=3):
    found = []
    for seed in range(seeds):
        for x in (0.2, 0.4, 0.6):
            y = 0.5 * x + intercept + 0.01 * drawn.normal()
            found.append((x + 0.01 * seed, y - 0.05, y + 0.05, seed))
    return found


@pytest.mark.costly
def test_a_table_of_runs_is_read_at_matched_id(call, tmp_path):
    """Of the mean over sets, by seeds, as the engine has it; in percent too. Twin: without the seeds."""
    drawn = np.random.default_rng(0)
    arms = {"clip": points_of(0.2, drawn), "sl": points_of(0.1, drawn)}
    write(tmp_path / "share.csv", arms)
    write(tmp_path / "percent.csv", arms, 100.0)
    flags = ["--id=val", "--ood=sketch,r", "--arm=loss", "--seed_column=seed", "--transform=logit"]
    found = {}
    for name, at, more in (("share", "0.3,0.7", []), ("percent", "30,70", ["--scale=percent", "--overlay=paper:3a"])):
        given = [f"--points={tmp_path}/{name}.csv", f"--at={at}", f"--out={tmp_path}/{name}", *flags, *more]
        code, out, err = call(*given)
        assert (code, err) == (0, "") and "9 points of 3 seeds" in out
        with (tmp_path / name / "lines.csv").open() as file:
            found[name] = list(csv.DictReader(file))
        assert {p.name for p in (tmp_path / name).iterdir()} == {"lines.csv", "lines.png", "lines.pdf"}
    assert "clip - sl, at ID 70.0, line: " in out and "over seeds, extrapolated" in out and "curve: not reached" in out
    families = []
    for points in arms.values():
        x, y, z, seed = np.array(points).T
        families.append(lines.family(x, (y + z) / 2, seed))
    known = lines.matched(*families, [0.3, 0.7], np.random.default_rng(0), transform="logit")
    for i, row in enumerate(found["share"][:2]):
        for name, value in (("difference", known.value), ("low", known.low), ("high", known.high)):
            assert float(row[name]) == pytest.approx(value[i])
            assert float(found["percent"][i][name]) == pytest.approx(100 * value[i])
        assert row["covers"] == "seeds" and row["extrapolated"] == str(known.extrapolated[i])
    assert (
        call(f"--points={tmp_path}/share.csv", f"--out={tmp_path}/one", *[f for f in flags if "seed" not in f])[0] == 0
    )
    with (tmp_path / "one" / "lines.csv").open() as file:
        assert [row["covers"] for row in csv.DictReader(file)] == ["points", ""]


@pytest.mark.costly
def test_intervals_cover_the_test_images(call, tmp_path):
    """Seeds that are alike at OOD accuracies .6 and .4: the binomial error alone. Twin: four times the images."""
    points = {arm: [(x, y, y, seed) for x in (0.3, 0.5) for seed in (0, 1)] for arm, y in (("clip", 0.6), ("sl", 0.4))}
    write(tmp_path / "t.csv", points)
    flags = ["--id=val", "--arm=loss", "--seed_column=seed", "--transform=plain", "--at=0.4"]

    def half(ood, images):
        given = [f"--points={tmp_path}/t.csv", f"--out={tmp_path}/out{images}", *flags, f"--ood={ood}"]
        code, out, err = call(*given, f"--images={images}")
        assert (code, err) == (0, "") and "over seeds, test items" in out
        with (tmp_path / f"out{images}" / "lines.csv").open() as file:
            row = next(row for row in csv.DictReader(file) if row["reading"] == "line")
        return (float(row["high"]) - float(row["low"])) / 2

    known = 1.96 * (2 * 0.24 / 400) ** 0.5
    assert half("sketch", "1000000,400") == pytest.approx(known, rel=0.08)
    assert half("sketch", "1000000,1600") < 0.6 * known
    both = half("sketch,r", "1000000,400,400")  # the mean of two sets
    assert both == pytest.approx(known / 2**0.5, rel=0.08)


def test_gaps_below_zero_are_read_on_plain_axes(call, tmp_path):
    write(
        tmp_path / "gaps.csv", {"clip": [(0.2, -0.4, 0, 0), (0.5, -0.2, 0, 0)], "sl": [(0, -0.8, 0, 0), (1, 0, 0, 0)]}
    )
    given = [f"--points={tmp_path}/gaps.csv", "--id=val", "--ood=sketch", "--arm=loss", f"--out={tmp_path}/out"]
    code, out, _ = call(*given, "--transform=plain", "--at=0.25")
    assert code == 0 and "at ID 0.250, curve: -0.367 - -0.600 = +0.233 (no interval)" in out
    assert_refused(call(*given), "gaps.csv, line 2: OOD must be in [0, 1], got -0.4; see --scale.")


def test_the_figure_has_the_arms_their_bands_and_the_papers_points_below():
    """The overlay's points are those of the panel's own data set, where it has any."""
    overlay = command.paper_points("paper:3a", "overlay")
    figure = command.draw(arms_of("paper:3c", "probit"), [0.2, 0.6], "probit", 100.0, overlay)
    assert [ax.get_title() for ax in figure.axes] == ["coco", "cc"]
    papers = {f"paper: {dataset} {arm}" for dataset in ("coco", "cc") for arm in ("clip", "supervised")}
    said = {text.get_text() for text in figure.legends[0].get_texts()}
    assert said == {"OOD = ID", "clip_scratch", "clip_scratch_no_intra", "95% bands of the lines", *papers}
    for ax in figure.axes:
        assert {x.get_label() for x in ax.get_lines()} & papers == {x for x in papers if ax.get_title() in x.split()}
        shown = {line.get_label(): line for line in ax.get_lines()}
        assert len(shown["clip_scratch"].get_xdata()) == 4
        assert shown["clip_scratch"].zorder > shown[f"paper: {ax.get_title()} clip"].zorder
        far = [x.get_xdata()[1] for x in ax.get_lines() if x.get_linestyle() == "--" and x.get_color() != "0.6"]
        assert far == [lines.TRANSFORMS["probit"][0](0.6)] * 2  # each line, as far as ID = 60
    own = command.grouped([p._replace(panel="") for p in overlay if p.panel == "cc"], "plain", 1.0, "own")
    below = command.draw(own, None, "plain", 1.0, overlay).legends[0].get_texts()
    assert sum(text.get_text().startswith("paper: ") for text in below) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "--points=FILE.csv is needed"),
        ("--points=paper:2", "--points must be of 3a, 3b, 3c, 6, 7, after paper:, got '2'"),
        ("--points=paper:6:coco", "--points must be of cc, as a data set of these figures, got 'coco'"),
        ("--points=paper:3a --overlay=3a", "--overlay must be paper:FIGURE, such as paper:3a, got '3a'"),
        ("--points=paper:3a --overlay=paper:9", "--overlay must be of 3a,"),
        ("--points=paper:3a --transform=cube", "--transform must be of probit, logit, plain, got 'cube'"),
        ("--points=paper:3a --at=100", "--at must be between 0 and 100, got 100"),
        ("--points=paper:3a --scale=share --at=20", "--at must be between 0 and 1, got 20; see --scale."),
        ("--points={}/none.csv", "none.csv cannot be read (No such file"),
        (
            "--points={}/bad.csv",
            "--id must be a column of {}/bad.csv, got 'id'; it has run, val, sketch, r, loss, seed.",
        ),
        ("--points={}/bad.csv --id=val --ood=r,x --arm=loss", "--ood must be a column of {}/bad.csv, got 'x'"),
        (
            "--points={}/bad.csv --id=val --ood=sketch --arm=loss",
            "bad.csv, line 3: sketch must be a finite number, got 'nan'",
        ),
        ("--points={}/bad.csv --id=val --ood=r --arm=loss", "bad.csv, line 3: OOD is 1, where probit is infinite"),
        ("--points={}/bad.csv --id=val --ood=r --arm=loss --transform=plain", "sl needs points of two different ID"),
        (
            "--points={}/bad.csv --id=loss --ood=r --arm=loss",
            "bad.csv, line 2: loss must be a finite number, got 'clip'",
        ),
        ("--points={}/percent.csv --id=val --ood=r --arm=loss", "ID must be in [0, 1], got 20; see --scale."),
        ("--points={}/empty.csv --id=val --ood=r --arm=loss", "empty.csv has no points"),
        ("--points={}/latin.csv", "latin.csv cannot be read ("),
        ("--points={}/bad.csv --id=val --ood=r --arm=loss --seed_column=x", "--seed_column must be a column of"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, tmp_path, arguments, said):
    write(
        tmp_path / "bad.csv", {"clip": [(0.2, 0.1, 0.1, 0), (0.3, float("nan"), 1, 0)], "sl": [(0.2, 0.1, 0.1, 0)] * 2}
    )
    write(tmp_path / "percent.csv", {"clip": [(20, 10, 10, 0), (30, 20, 20, 0)]})
    write(tmp_path / "empty.csv", {})
    (tmp_path / "latin.csv").write_bytes(b"id,ood,arm\n\xe9,1,2\n")
    before = contents(tmp_path)
    assert_refused(call(*arguments.format(tmp_path).split(), f"--out={tmp_path}/out"), said.format(tmp_path))
    assert contents(tmp_path) == before


def test_a_torn_row_is_refused(call, tmp_path):
    table = "id,ood,arm\n0.5,0.4,a\n0.6,0.5,a\n{}\n0.7,0.6,b\n0.8,0.7,b\n"
    for row in ("0.5,0.4", "0.5,0.4,a,1"):
        (tmp_path / "t.csv").write_text(table.format(row))
        refused = call(f"--points={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
        assert_refused(refused, "t.csv, line 4: must have 3 cells, as the first line has.")
    assert not (tmp_path / "out").exists()
