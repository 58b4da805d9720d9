"""Training of the reference model: text, schedule, loop, checkpoints, processes; `python -m trellis_ops.lm.train`.

Nothing here is imported by `import trellis_ops`.
"""
