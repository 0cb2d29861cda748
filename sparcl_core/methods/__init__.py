"""Continual-learning methods, one a file: what a step adds to the loss, what a method keeps and computes, and what all of that costs.

None of these files imports PyTorch before something is computed: settings are checked without its seconds of import.
"""
