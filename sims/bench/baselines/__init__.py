"""What a competent user would write without this library: the other side of `sims.bench`.

Only flax_lenet imports JAX.
"""
