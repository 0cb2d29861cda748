"""The three sparsities, each by itself: weights (masks, TDM), data (DDR), gradients (DGM), and the importance they rank by."""
