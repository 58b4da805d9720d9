"""What one may ask of a training run, and which values are legal."""
