"""Text from a trained model in a terminal: `python -m trellis_ops.generate`.

Nothing here is imported by `import trellis_ops`.
"""
