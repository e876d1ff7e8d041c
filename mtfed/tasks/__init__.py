"""Tasks: what is predicted, and for each kind of task how labels are read, trained, measured and shown."""
