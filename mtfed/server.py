"""The ServerApp of the experiments: ``serverapp = "mtfed.server:app"``."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .config import read_config
from .federation.rounds import Federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    Federation(grid, read_config(context.run_config)).run()
