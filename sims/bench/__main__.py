"""Time this project's code side by side with plain NumPy, SciPy, PyTorch and scikit-learn.

Each job computes one thing in two ways, checks that both give the same, and times them in turn. The table shows the
median, the ratio with its smallest and largest value, the goal, and what bounds our side on this machine.

    python -m sims.bench --jobs=theory,max_margin --repeats=9 --json=bench.json
"""

import os
import pathlib

from absl import flags

from sims.bench.report import JOBS, as_json, check, run, table, versions
from sims.engine.flags import UsageError, define, integer, names, optional, path, run_main


def _writable(name: str) -> pathlib.Path:
    """The file, created before the work begins. Raises: UsageError."""
    try:
        file = pathlib.Path(name)
        file.touch()
    except OSError as error:
        raise UsageError(f"--json={name} cannot be written ({error.strerror}).") from None
    return file


def _define_flags() -> None:
    define("jobs", JOBS, f"jobs, of {', '.join(JOBS)}", names)
    define("repeats", 5, "times each side is timed, in turn, after one call that does not count; >= 5", integer)
    define("json", None, "file for the table and the versions as JSON; none: none", optional(path))


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    check(values["jobs"], values["repeats"])
    file = None if values["json"] is None else _writable(values["json"])
    import jax

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))  # one device a core, as in the experiments
    facts = versions()
    print("  ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    results = run(values["jobs"], values["repeats"])
    print(table(results))
    if file is not None:
        file.write_text(as_json(facts, results))
    return int(any(row.met is False and row.remark for result in results.values() for row in result.rows))


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
