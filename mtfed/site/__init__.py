"""Before a hospital takes part: its folder drafted and checked."""
