"""The parts of a learner: one step, one session, importance for TDM, and networks that are not trained."""
