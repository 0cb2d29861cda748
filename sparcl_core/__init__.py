"""SparCL on one device: models, masks, replay, the three sparsities, exact costs and the wire codec.

Needs torch and numpy only: neither Flower nor Ray is imported anywhere in this package.
Source: Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022, arXiv 2209.09476, and the authors'
released code. Each module's docstring says which of the two it follows where they differ.
"""
