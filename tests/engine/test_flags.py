"""Number lists, name lists and the checks of a sweep's config."""

import dataclasses
import re

import numpy as np
import pytest

from sims.engine import flags
from sims.engine.flags import UsageError
from sims.sweep_spurious.config import AXES, LEARNERS, Config, Setting


@pytest.mark.parametrize(
    "text, values",
    [
        ("0.5", (0.5,)),
        ("0.5,0.9", (0.5, 0.9)),
        (" 0.5 , 0.9 ", (0.5, 0.9)),
        ("-3,1e-2", (-3.0, 0.01)),
        ("0.5:1:3", (0.5, 0.75, 1.0)),
        ("0.7:0.7:1", (0.7,)),
    ],
)
def test_numbers(text, values):
    assert flags.numbers(text) == values


@pytest.mark.parametrize("start, stop, count", [(0.1, 0.7, 7), (0.3, 0.9, 101), (-0.1, 1 / 3, 11), (0.5, 0.95, 1000)])
def test_a_range_is_even_and_holds_both_ends_exactly(start, stop, count):
    values = flags.numbers(f"{start}:{stop}:{count}")
    assert (values[0], values[-1], len(values)) == (start, stop, count)
    np.testing.assert_allclose(values, np.linspace(start, stop, count), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "text, why",
    [
        *((text, "needs numbers such as") for text in ("", ",", "0.5,", "0.5;0.9", "half", "0x1", "0.5 0.9")),
        *((text, "0 or 1e-06 to 1e+06 in size") for text in ("nan", "0.5,inf", "-inf", "1e400", "nan:1:3", "1e39")),
        *((text, "start:stop:count") for text in ("0:1", "0:1:2:3", ":")),
        *((text, "needs a count from 1 to 100000") for text in ("0:1:0", "0:1:-2", "0:1:2.5", "0:1:", "0:1:100001")),
        *((text, "increase") for text in ("0.5,0.5", "0.5,0.6,0.50", "0.5:0.5:2", "0,-0", "0.9,0.5", "1:0:3")),
        ("0:1:1", "start = stop where count is 1"),
    ],
)  # fmt: skip
def test_numbers_refuses(text, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        flags.numbers(text)


def test_the_other_converters():
    assert flags.names("mmcl, info_nce") == ("mmcl", "info_nce")
    assert flags.integer("-3") == -3
    assert flags.optional(flags.integer)("None") is None
    assert flags.optional(flags.integer)("3") == 3
    assert flags.number("0.5") == 0.5
    assert flags.path("runs/a b") == "runs/a b"


@pytest.mark.parametrize(
    "convert, text",
    [
        (flags.names, "mmcl,mmcl"),
        (flags.integer, "2.0"),
        (flags.integer, ""),
        (flags.integer, "nan"),
        (flags.optional(flags.integer), "all"),
        (flags.number, "0.5,0.6"),
        (flags.number, "nan"),
        (flags.path, ""),
    ],
)
def test_the_other_converters_refuse(convert, text):
    with pytest.raises(ValueError, match=r"^needs "):
        convert(text)


def test_the_default_config_is_sound():
    config = Config()
    config.check()
    assert tuple(config.axes) == AXES
    assert config.learners == LEARNERS
    assert config.runs == len(config.p_spu) * config.seeds


def test_flat_holds_every_field_once():
    names = {f.name for cls in (Config, Setting) for f in dataclasses.fields(cls)} - {"setting"}
    assert set(Config().flat()) == names | {"command"}


def test_every_axis_counts_towards_the_runs():
    config = Config(**{name: tuple(np.linspace(0.1, 0.9, 2 + i)) for i, name in enumerate(AXES)}, seeds=7)
    assert config.runs == 2 * 3 * 4 * 5 * 6 * 7


def bad(name, value, allowed, **others):
    return pytest.param(name, value, allowed, others, id=f"{name}={value}"[:40])


BAD = [
    *(bad(name, (0.5, x), "in [0, 1]") for name in ("p_spu", "pi_core", "same_class_weight") for x in (-0.1, 1.2)),
    *(bad(name, (0.5, -0.1), ">= 0") for name in ("sigma_core", "sigma_spu")),
    *(bad(name, (float("nan"),), "in [0, 1]") for name in ("p_spu", "pi_core", "same_class_weight")),
    *(bad(name, (float(x),), "finite and >= 0") for name in ("sigma_core", "sigma_spu") for x in ("nan", "inf")),
    *(bad(name, (), "one or more values") for name in (*AXES, "learners")),
    *(bad(name, (0.5, 0.5), "differ from each other") for name in AXES),
    bad("learners", ("svm",), ", ".join(LEARNERS)),
    bad("learners", ("",), ", ".join(LEARNERS)),
    bad("learners", ("mmcl", "mmcl"), "differ from each other"),
    *(bad("seeds", value, ">= 1") for value in (0, -1)),
    bad("seed", -1, ">= 0"),
    bad("seed", 2**32, "<= 4294967295"),
    *(bad("n", value, ">= 2") for value in (1, 0, -5)),
    *(bad(name, 1, ">= 2") for name in ("dim_image", "dim_text", "batch_size")),
    bad("batch_size", 101, "<= 100", n=100),
    bad("embed_dim", 0, ">= 1"),
    bad("embed_dim", 9, "<= 8", dim_image=8, dim_text=12),
    bad("embed_dim", 9, "<= 8", dim_image=12, dim_text=8),
    bad("gradient_steps", 0, ">= 1"),
    bad("gradient_steps", 2**31, "<= 2147483647"),
    *(bad("temperature", value, "> 0") for value in (0.0, -1.0, float("nan"))),
    *(bad(name, -1.0, ">= 0") for name in ("sigma_image", "sigma_text", "mu_spu")),
    *(bad("mu_core", value, "> 0") for value in (0.0, -1.0)),
    *(bad("pi_spu", value, "in [0, 1]") for value in (-0.1, 1.1)),
    *(bad(name, 10**12, "this machine has") for name in ("n", "dim_image", "dim_text", "seeds")),
]  # fmt: skip


@pytest.mark.parametrize("name, value, allowed, others", BAD)
def test_check_names_the_flag_the_value_and_what_is_allowed(name, value, allowed, others):
    fields = {name: value, **others}
    setting = Setting(**{k: v for k, v in fields.items() if k in Setting.__dataclass_fields__})
    config = Config(setting=setting, **{k: v for k, v in fields.items() if k in (*AXES, "learners", "seeds", "seed")})
    with pytest.raises(UsageError) as caught:
        config.check()
    message = str(caught.value)
    offending = value[-1] if isinstance(value, tuple) and value and len(set(value)) == len(value) else value
    shown = f"{offending:g}" if isinstance(offending, float) else str(offending)
    assert f"--{name}" in message and shown in message and allowed in message
    assert "\n" not in message


def test_the_largest_and_smallest_allowed_sizes_pass():
    Config(seeds=1, seed=2**32 - 1, setting=Setting(n=2, dim_image=2, dim_text=2, batch_size=2, embed_dim=2)).check()
    assert Setting(n=500).batch == 128
    assert Setting(n=50).batch == 50
    assert Setting(n=50, batch_size=7).batch == 7
    assert Setting(dim_image=30, dim_text=20).rank == 20
    assert Setting(dim_image=30, dim_text=20, embed_dim=3).rank == 3


def test_memory_is_judged_by_the_learners_asked_for():
    setting = Setting(n=500_000, dim_image=2, dim_text=2)  # its Gram matrix alone is a terabyte
    Config(setting=setting, learners=("mmcl",)).check()
    with pytest.raises(UsageError, match="a run of supervised_gradient"):
        Config(setting=setting, learners=("mmcl", "supervised_gradient")).check()


def test_auto_takes_the_cheapest_sampler():
    few, many = Setting(n=127), Setting(n=128)
    assert [s.sampler_of("mmcl") for s in (few, many)] == ["latent", "statistics"]
    assert [many.sampler_of(x) for x in LEARNERS[1:]] == ["ambient", "ambient", "latent", "latent"]
    assert Setting(embed_dim=1).sampler_of("mmcl") == "ambient"
    assert Setting(n=10, sampler="statistics").sampler_of("mmcl") == "statistics"
