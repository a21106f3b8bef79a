"""The length study: a grid of runs, one run, what it measures, and the report."""
