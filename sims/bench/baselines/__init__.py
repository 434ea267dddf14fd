"""What a competent user would write without this library: the other side of `sims.bench`. None of it imports JAX."""
