"""The engine: state, step, loop and checkpoints. It emits events and prints nothing."""
