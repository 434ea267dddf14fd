"""The GPU run's runner, its parts mocked: what fails or takes too long, what is kept, what is refused."""

import json
import pathlib
import subprocess
import sys
import time
import zipfile

import pytest

from sims.bench import gpu
from sims.bench.gpu import Config, Part
from sims.engine.flags import UsageError

GOOD = "import json, sys; json.dump({'lines': ['x 1']}, open(sys.argv[2] + '/' + sys.argv[1] + '.json', 'w'))"
BAD = "import sys; print('why it failed', file=sys.stderr); sys.exit(3)"
SILENT = "pass"


@pytest.fixture
def parts(monkeypatch):
    """Sets the parts' programs; each gets its name and the folder."""

    def have(**programs):
        monkeypatch.setattr(gpu, "PARTS", {name: Part(f"about {name}", 20) for name in programs})
        given = lambda name, config, out: [sys.executable, "-c", programs[name], name, str(out)]  # noqa: E731
        monkeypatch.setattr(gpu, "command", given)
        return Config(tuple(programs))

    return have


def statuses(summary):
    return {name: part["status"] for name, part in summary["parts"].items()}


def test_a_part_that_fails_does_not_stop_the_others(parts, tmp_path):
    config = parts(first=BAD, second=SILENT, third=GOOD)
    summary = gpu.run(config, tmp_path / "out")
    assert statuses(summary) == {"first": "failed", "second": "failed", "third": "ok"}
    assert summary["parts"]["first"]["reason"] == "why it failed"
    assert "wrote no second.json" in summary["parts"]["second"]["reason"]
    assert summary["parts"]["third"]["lines"] == ["x 1"]
    assert gpu.failed(summary, config) == ["first", "second"]
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    told = (tmp_path / "out/summary.md").read_text()
    assert "| first | about first | failed: why it failed |" in told and "    x 1" in told
    assert (tmp_path / "out/first.log").read_text() == "why it failed\n"


def test_a_part_over_its_limit_is_ended_with_its_processes_and_what_it_wrote_counts(parts, tmp_path, monkeypatch):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    slow = f"{GOOD}\nimport subprocess, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(600)"
    config = parts(slow=slow, after=GOOD)
    monkeypatch.setattr(gpu, "_LEAST", 1.0)
    monkeypatch.setitem(gpu.PARTS, "slow", Part("", 3))
    began = time.monotonic()
    summary = gpu.run(config, tmp_path / "out")
    assert time.monotonic() - began < 60
    assert statuses(summary) == {"slow": "failed", "after": "ok"}
    assert summary["parts"]["slow"]["reason"] == "not done after 3 s" and summary["parts"]["slow"]["lines"] == ["x 1"]
    said = (tmp_path / "out/slow.log").read_text().split()
    stat = pathlib.Path(f"/proc/{said[0]}/stat")  # a zombie, until init has taken it
    assert not stat.exists() or stat.read_text().split(") ")[1][0] == "Z"


def test_where_the_time_is_over_the_rest_is_not_begun(parts, tmp_path):
    config = Config(parts(a=GOOD, b=GOOD).parts, minutes=0.01)
    summary = gpu.run(config, tmp_path / "out")
    assert set(statuses(summary).values()) == {"not begun"}
    assert gpu.failed(summary, config) == ["a", "b"]


def test_without_a_gpu_only_the_devices_are_looked_at(parts, tmp_path):
    none = "import sys; sys.exit('JAX sees no GPU.')"
    summary = gpu.run(parts(devices=none, clip=GOOD), tmp_path / "out")
    assert statuses(summary) == {"devices": "failed", "clip": "not begun"}
    assert "--tiny" in summary["parts"]["clip"]["reason"]


def test_the_same_command_keeps_what_went_well_and_overwrite_does_not(parts, tmp_path):
    once = f"{GOOD}\nopen(sys.argv[2] + '/times', 'a').write(sys.argv[1])"
    out = tmp_path / "out"
    gpu.run(parts(a=once, b=BAD), out)
    config = parts(a=once, b=once)
    assert statuses(gpu.run(config, out)) == {"a": "ok", "b": "ok"}
    assert (out / "times").read_text() == "ab"
    (out / "b").mkdir()  # as a part's own run leaves it
    gpu.run(Config(("a",)), out, overwrite=True)
    assert (out / "times").read_text() == "aba" and not (out / "b").exists()
    assert list(json.loads((out / "summary.json").read_text())["parts"]) == ["a"]


def test_folders_of_other_things_are_refused(parts, tmp_path):
    config, out = parts(a=GOOD), tmp_path / "out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            gpu.run(config, tmp_path / "other", overwrite=overwrite)
    gpu.run(config, out)
    with pytest.raises(UsageError, match="without --tiny"):
        gpu.run(Config(("a",), tiny=True), out)
    (out / "summary.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        gpu.run(config, out)
    assert statuses(gpu.run(config, out, overwrite=True)) == {"a": "ok"}


def a_wheel(folder, name, whole=True):
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "here = 1\n")
        if whole:
            about = f"{name}-1.0.dist-info"
            file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")


def test_what_python_lacks_comes_from_wheels(parts, tmp_path):
    pytest.importorskip("pip")
    for name in ("numpy", "lacking_here"):  # the first is there, and stays
        a_wheel(tmp_path, name)
    program = f"import lacking_here, numpy; assert numpy.__version__ != '1.0'\n{GOOD}"
    summary = gpu.run(parts(a=program), tmp_path / "out", tmp_path)
    assert statuses(summary) == {"packages": "ok", "a": "ok"}
    assert len(summary["parts"]["packages"]["lines"]) == 1


def test_a_damaged_wheel_is_told_and_the_parts_go_on(parts, tmp_path):
    pytest.importorskip("pip")
    a_wheel(tmp_path, "lacking_here", whole=False)
    config = parts(a=GOOD)
    summary = gpu.run(config, tmp_path / "out", tmp_path)
    assert statuses(summary) == {"packages": "failed", "a": "ok"} and summary["parts"]["packages"]["reason"]
    assert gpu.failed(summary, config) == ["packages"]


def test_a_part_gets_what_is_left_of_the_time(parts, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(gpu, "_run", lambda *given: limits.append(given[3]) or {"status": "ok"})
    gpu.run(Config(parts(a=GOOD).parts, minutes=60), tmp_path / "long")
    gpu.run(Config(("a",), minutes=0.3), tmp_path / "short")
    assert limits[0] == 20 and 5 < limits[1] < 18


def test_every_part_has_a_program():
    from sims.bench import gpu_parts

    assert list(gpu_parts.PARTS) == list(gpu.PARTS)
    assert Config().budget == 8
    assert all((gpu.ROOT / "tests" / f"{name}.py").exists() for name in gpu_parts._TESTS)


@pytest.mark.slow
def test_a_part_by_the_command(tmp_path):
    """The smallest one, on whatever device there is."""
    given = ["--tiny", "--parts=devices", f"--out={tmp_path / 'out'}", "--wheels=/nowhere"]
    done = subprocess.run([sys.executable, "-m", "sims.bench.gpu", *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"results go to {tmp_path / 'out'}") and "TFLOP/s" in done.stdout
    assert json.loads((tmp_path / "out/devices.json").read_text())["figures"]["versions"]["jax"]


@pytest.mark.parametrize("flag", ["--parts=warp", "--parts=", "--minutes=0", "--minutes=many", "--out=/dev/null/x"])
def test_bad_flags_exit_with_two_and_one_line(flag):
    done = subprocess.run([sys.executable, "-m", "sims.bench.gpu", flag], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert flag.split("=")[0].lstrip("-") in done.stderr
