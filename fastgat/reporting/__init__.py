"""Listeners to the engine's events: the run folder, the progress display, TensorBoard."""
