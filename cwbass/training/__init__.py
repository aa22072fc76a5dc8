"""The loop, and what it stands on: device, optimiser, schedule, seeds, checkpoints."""
