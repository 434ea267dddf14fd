"""Flags of the engine that runs every experiment, and the start of JAX that they ask for.

On a CPU every core is a device of its own. Over several hosts each process takes its share of the blocks and writes
them to the one store; only the first prints, predicts and draws.
"""

import hashlib
import os
import pathlib
import platform

from absl import flags

from sims.engine.flags import Options, UsageError, check_positive, check_range, define, integer, number, optional

flags.disclaim_key_flags()  # they belong to the experiments, and show in their --help

_COORDINATOR = "none: one process; auto: found by JAX under SLURM, on TPU pods and GKE; HOST:PORT of process 0"


def define_flags() -> None:
    """The flags that every experiment shares."""
    define("memory_gb", None, "memory for a compiled block, GiB, > 0; none: half the machine's, or 0.8 of a device's",
           optional(number))  # fmt: skip
    flags.DEFINE_bool(
        "overwrite", False, "measure anew what --out holds, whatever run it is of; a repeat with it starts anew again"
    )
    flags.DEFINE_bool("dry_run", False, "print cells, memory, compile and run time, and write nothing")
    flags.DEFINE_bool("x64", False, "measure in float64 (predictions always are)")
    define_process_flags()


def define_process_flags() -> None:
    """The flags of devices and processes."""
    text = "devices that a CPU is split into, >= 1; none: one a core, for CLIP one"
    define("cpu_devices", None, text, optional(integer))
    define("coordinator", None, f"several processes: {_COORDINATOR}", optional(str))
    define("num_processes", None, "number of processes, with --coordinator=HOST:PORT", optional(integer))
    define("process_id", None, "this one's number, from 0, with --coordinator=HOST:PORT", optional(integer))


def start() -> Options:
    """Start JAX as the flags say; the options of this run. Raises: UsageError for what cannot be."""
    values = flags.FLAGS
    if values.memory_gb is not None:
        check_positive("memory_gb", values.memory_gb)
    start_processes(len(os.sched_getaffinity(0)), values.x64)
    return Options(memory_gb=values.memory_gb, overwrite=values.overwrite, dry_run=values.dry_run)


def start_processes(cpu_devices: int, x64: bool = False) -> None:
    """Start JAX as the flags of processes say, its compiled programs kept on disk.

    cpu_devices: of a CPU, where the flag does not say.  Raises: UsageError for what cannot be.
    """
    values = flags.FLAGS
    for name, least in (("cpu_devices", 1), ("num_processes", 1), ("process_id", 0)):
        if (given := values[name].value) is not None:
            check_range(name, given, least)
    given = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    if sum(value not in (None, "auto") for value in given.values()) not in (0, 3):
        shown = ", ".join(f"--{name}={value}" for name, value in given.items())
        raise UsageError(f"--coordinator=HOST:PORT, --num_processes, --process_id must be given together, got {shown}.")
    _start_jax(values, values.cpu_devices or cpu_devices, x64)


def _start_jax(values: flags.FlagValues, cpu_devices: int, x64: bool) -> None:
    import jax

    if x64:
        jax.config.update("jax_enable_x64", True)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # JAX sets it at run time
        jax.config.update("jax_compilation_cache_dir", str(cache()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if values.coordinator is not None:
        _join(values)


def _join(values: flags.FlagValues) -> None:
    import jax

    address = None if values.coordinator == "auto" else values.coordinator
    try:
        jax.distributed.initialize(address, values.num_processes, values.process_id)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"--coordinator={values.coordinator} cannot be joined ({reason}).") from None


def cache() -> pathlib.Path:
    """Compiled programs, kept apart by kind of processor: homes are shared by machines that differ."""
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n")
        kind = "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        kind = platform.processor()
    return root / "mmcl_theory" / hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:12]
