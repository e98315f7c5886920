"""Pretraining: the optimizer, the schedule of a run, its loop, and what is saved of it."""
