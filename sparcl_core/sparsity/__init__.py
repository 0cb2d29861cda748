"""The three sparsities, each by itself: weights (masks, and what changes them), data (DDR), gradients (DGM), and what ranks them."""
