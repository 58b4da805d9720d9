"""Random calls of `memory_attention` and `memory_step` with any rule, and of both on pools.

`drawn` draws the rules; `values` makes the tensors of a case, `calls` and `pools` call the operators, `oracle` has what
they should give.
"""
