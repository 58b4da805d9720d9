"""The search: space, sampler, finals, and the winner."""
