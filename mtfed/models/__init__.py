"""Multi-task models: an encoder, a scheme by which the tasks share it, and a decoder for each task."""
