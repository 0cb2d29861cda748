"""An experiment as settings: sections, bounds, and what is said of mistakes. Imports neither PyTorch nor Ray."""
