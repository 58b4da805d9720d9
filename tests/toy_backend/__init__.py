"""A third backend, of one folder: its kernels run eager PyTorch in place on the arguments of their signatures."""
