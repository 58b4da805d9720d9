"""States in a pool: the operators with `state_indices`, as a server calls them.

A pool is a tensor `[capacity, H, M, D]` for each state of a rule; each of its slots is the state of one sequence. A
call has N rows, the next tokens of N sequences: one token each in a decode step (`trellis_step`, `memory_step`), or any
number of each, packed one after another, where some rows decode and others prefill (`trellis_attention`,
`memory_attention`). Slots are read and written in place. Nothing is gathered or scattered, and nothing waits for a GPU,
so that a CUDA graph can hold a call.

- `state_indices`: `[N]`, int32 or int64, the slot of each row, each at most once. -1 skips the row, such as one that
  pads the batch of a CUDA graph: its y is zero, and no slot is touched.
- `positions`: `[N]`, int32 or int64, how many tokens each slot has seen since its sequence began, below 2^31. At 0 the
  row is fresh: what its slot holds is replaced by `first_state`, or by zeros. Where it is a multiple of C a chunk
  starts, so a state that goes on at the start of a chunk has a multiple of C other than 0.
- `first_state`: `[H, M, D]` of each state, such as the learned state of a model; None is zero.

The states from the start of the chunk, which z is taken at where C > 1, lie in pools of their own (`gradient_state`;
`chunk_state` of `memory_step` and `memory_attention`), which the operators fill. A row may begin and end anywhere in a
chunk. The result is that of the same sequence alone, up to rounding.

The slots of a pool may lie any stride apart, since vLLM makes each state a view of one block; what follows the first
axis is contiguous. States are float32. A pool is for inference: a gradient is refused.

On a CPU, slots and positions that no pool has, and slots given twice, are refused before a kernel runs (`PoolError`).
On a GPU they are not looked at: a row whose slot is out of range is skipped, and rows that share a slot leave nothing
of use in it. TRELLIS_OPS_CHECK_VALUES=1 looks there too, and waits.
"""
