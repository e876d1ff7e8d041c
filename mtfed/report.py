"""Placeholder until the page is written."""
def write_report(runs, out=None):
    return None
