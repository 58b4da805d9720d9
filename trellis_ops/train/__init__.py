"""Training of the reference model: text, schedule, loop, checkpoints, several processes; `python -m trellis_ops.train`.

Nothing here is imported by `import trellis_ops`.
"""
