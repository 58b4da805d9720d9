"""What the reference model learns to recall, by its rule and sizes; `python -m trellis_ops.lm.recall`.

Nothing here is imported by `import trellis_ops`.
"""
