"""The in-process engine: resident worker processes that exchange arrays through shared memory."""
