"""Rehearsal: the buffer, and the losses on what is drawn from it."""
