"""What a spec costs without the kernels of this project: eager PyTorch, torch.compile of it, and other libraries."""
