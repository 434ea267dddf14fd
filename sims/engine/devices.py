"""The flags that every experiment shares, and the start of JAX with them.

On a CPU each core is a device. With several hosts, each process computes its share of the blocks and writes them to
the shared store. Only the first process prints, predicts and draws.
"""

import hashlib
import os
import pathlib
import platform

from absl import flags

from sims.engine.flags import Options, UsageError, check_positive, check_range, define, integer, number, optional

flags.disclaim_key_flags()  # absl then lists them in the --help of each experiment

_COORDINATOR = "none: one process; auto: JAX detects it (SLURM, TPU pods, GKE); else HOST:PORT of process 0"


def define_flags() -> None:
    """The flags that every experiment shares."""
    text = "memory limit of a compiled block in GiB, > 0; none: half of the machine's memory, or 0.8 of a device's"
    define("memory_gb", None, text, optional(number))
    flags.DEFINE_bool(
        "overwrite",
        False,
        "delete the run in --out, whichever it is, and start again; so does each repeat with this flag",
    )
    flags.DEFINE_bool("dry_run", False, "print the number of cells, memory, and time to compile and run; write nothing")
    flags.DEFINE_bool("x64", False, "measure in float64 (predictions always use it)")
    define_process_flags()


def define_process_flags() -> None:
    """The flags that set up devices and processes."""
    text = "number of devices that a CPU is split into, >= 1; none: one per core (CLIP: one)"
    define("cpu_devices", None, text, optional(integer))
    define("coordinator", None, f"address of the first of several processes; {_COORDINATOR}", optional(str))
    define("num_processes", None, "number of processes, with --coordinator=HOST:PORT", optional(integer))
    define("process_id", None, "number of this process, from 0, with --coordinator=HOST:PORT", optional(integer))


def start() -> Options:
    """Start JAX as the flags say; returns the options of this run. Raises: UsageError for a bad value."""
    values = flags.FLAGS
    if values.memory_gb is not None:
        check_positive("memory_gb", values.memory_gb)
    start_processes(len(os.sched_getaffinity(0)), values.x64)
    return Options(memory_gb=values.memory_gb, overwrite=values.overwrite, dry_run=values.dry_run)


def start_processes(cpu_devices: int, x64: bool = False) -> None:
    """Start JAX with the flags of `define_process_flags`, and cache its compiled programs on disk.

    cpu_devices: number of devices of a CPU, unless the flag sets it.
    Raises: UsageError for a bad value.
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
    """Folder of compiled programs, one for each kind of processor: machines that share a home may differ."""
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n")
        kind = "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        kind = platform.processor()
    return root / "mmcl_theory" / hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:12]
