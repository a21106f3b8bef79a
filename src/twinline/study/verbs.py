"""The verbs of ``twinline study``: as in ``cli``, one function each, no logic."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

study = App(name="study", help="The length study: a grid of runs, and its report.")


@study.command(name="plan")
def study_plan(grid: Path, *, results: Path = Path("results")) -> None:
    """Print a grid's runs and the hours that they take on this machine; start nothing.

    Parameters
    ----------
    grid
        YAML file of the grid.
    results
        Folder of finished runs, below it one folder a grid.
    """
    from .plan import plan_text

    print(plan_text(grid, results))


@study.command(name="run")
def study_run(
    grid: Path,
    *,
    results: Path = Path("results"),
    work: Path = Path("build/study"),
    runs: tuple[str, ...] = (),
) -> None:
    """Run what is not finished of a grid; a stopped run goes on where it was.

    Parameters
    ----------
    grid
        YAML file of the grid.
    results
        Folder of finished runs, below it one folder a grid.
    work
        Folder of weights and checkpoints, not needed once a run is finished.
    runs
        Only these runs, by the names that plan prints.
    """
    from .plan import run_grid

    done = run_grid(grid, results, work, runs)
    print(f"{len(done)} runs finished; twinline study report shows them")


@study.command(name="report")
def study_report(
    name: str | None = None, *, results: Path = Path("results"), docs: Path = Path("docs")
) -> None:
    """Make a grid's finished runs one table (RESULTS/NAME.json) and one page (DOCS/NAME).

    Parameters
    ----------
    name
        The grid's name; by default the one whose results are newest.
    results
        Folder of finished runs.
    docs
        Folder of the page.
    """
    from .report import make

    for path in make(name, results, docs):
        print(f"wrote {path}")


@study.command(name="retrieval")
def study_retrieval(
    grid: Path,
    *,
    results: Path = Path("results"),
    work: Path = Path("build/study"),
    arms: tuple[str, ...] = (),
) -> None:
    """Train and test the arms of a retrieval grid; print the table, write long-retrieval.json.

    Parameters
    ----------
    grid
        YAML file of the grid.
    results
        Folder of finished arms, below it one folder a grid.
    work
        Folder of weights and checkpoints.
    arms
        Only these arms.
    """
    from .retrieval import run_search

    for path in run_search(grid, results, work, arms):
        print(f"wrote {path}")
