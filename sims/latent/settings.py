"""What a run of a learner needs besides its cell: sizes, noise, training, and how its sample is drawn."""

import dataclasses

AXES = ("p_spu", "sigma_core", "sigma_spu", "pi_core", "same_class_weight")
LEARNERS = ("mmcl", "mmcl_gradient", "info_nce", "supervised", "supervised_gradient")
# How a learner's result is drawn, cheapest first: from sufficient statistics, at a cost independent of n and of the
# dimensions; in latent space; from samples in ambient space. All three have the same distribution (X9).
SAMPLERS = ("statistics", "latent", "ambient")
_HAS = {"mmcl": SAMPLERS, "supervised": SAMPLERS[1:], "supervised_gradient": SAMPLERS[1:]}
_CROSSOVER = 128  # number of samples above which drawing statistics is faster than drawing latents


@dataclasses.dataclass(frozen=True)
class Setting:
    """What does not vary between the cells of a sweep.

    n: samples.
    dim_image, dim_text: input dimensions.
    sigma_image, sigma_text: noise norms.
    mu_core, mu_spu: feature means.
    pi_spu: probability that a caption names the spurious feature.
    embed_dim: embedding size; None: no limit.
    gradient_steps: of the gradient-trained learners.
    batch_size: of InfoNCE; None: 128, or n if that is smaller.
    temperature: of InfoNCE.
    sampler: of SAMPLERS, or "auto": the cheapest that each learner has.
    """

    n: int = 500
    dim_image: int = 1000
    dim_text: int = 20
    sigma_image: float = 2.0
    sigma_text: float = 1.0
    mu_core: float = 1.0
    mu_spu: float = 1.0
    pi_spu: float = 1.0
    embed_dim: int | None = None
    gradient_steps: int = 300
    batch_size: int | None = None
    temperature: float = 1.0
    sampler: str = "auto"

    def samplers(self, learner: str) -> tuple[str, ...]:
        """The samplers of this learner; the rank-r rule has only `ambient`: it needs a sample's whole spectrum."""
        if learner == "mmcl" and self.rank < min(self.dim_image, self.dim_text):
            return ("ambient",)
        return _HAS.get(learner, ("ambient",))

    def sampler_of(self, learner: str) -> str:
        """The sampler of this learner's runs; auto: the cheapest, as BENCHMARKS.md has them under "crossover"."""
        if self.sampler != "auto":
            return self.sampler
        cheap = self.samplers(learner)[0]
        return "latent" if cheap == "statistics" and self.n < _CROSSOVER else cheap

    def least_bytes(self, learner: str) -> int:
        """A lower bound on the memory of a run: its sample and its Gram matrix."""
        sampler = self.sampler_of(learner)
        if sampler == "statistics":
            return 0
        sample = self.n * (self.dim_image + self.dim_text) if sampler == "ambient" else self.n
        return 4 * (sample + (self.n**2 if learner.startswith("supervised") else 0))

    @property
    def rank(self) -> int:
        full = min(self.dim_image, self.dim_text)
        return full if self.embed_dim is None else min(self.embed_dim, full)

    @property
    def batch(self) -> int:
        return min(128, self.n) if self.batch_size is None else self.batch_size
