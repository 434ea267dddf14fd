"""Strict tests: float64, no silent rank promotion; a second BLAS thread pool would fight XLA's for the cores.

Compiling is most of what the suite does. So XLA's optimisations are off where a test does not ask for them, and what is
compiled is kept in build/, for both workers, for `make slow`, and for the next time. That holds for the smallest
program too: to read it takes half the time that compiling it takes.
"""

import gc
import os
import pathlib
import signal

import jaxlib.version
import pytest

# A script's background job starts with it ignored, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # Two thirds of the time, and a twentieth. Later compilers lack the first; an unknown flag ends the process.
    + (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        if jaxlib.version.__version_info__ < (0, 11)
        else ""
    ),
)

import jax

from sims.engine import devices
from tests.helpers import exit_code

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Not through the environment: processes that tests start and kill would leave half-written programs here.
CACHE = pathlib.Path(__file__).parents[1] / "build" / "compiled" / devices.cache().name
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_make_parametrize_id(config, val, argname):
    """Name bytes by their argument: what gzip packs holds the time, and two workers must collect the same names."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_finish(session):
    """Leave what is imported out of the garbage collection, and collect less often: it is a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def mmcl(capsys, monkeypatch):
    """(module of a command, arguments) -> (exit code, stdout, stderr), in this process.

    The environment and the handler of SIGTERM are put back afterwards.
    """
    monkeypatch.setenv("MPLBACKEND", "Agg")
    before = signal.getsignal(signal.SIGTERM)

    def called(module, *args, **frame):
        return exit_code(module, *args, **frame), *capsys.readouterr()

    yield called
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def float32():
    """The commands measure in float32."""
    with jax.enable_x64(False):
        yield
