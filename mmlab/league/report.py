"""What is written of a league when its cells are done, or as far as they are."""

from __future__ import annotations

from pathlib import Path

from mmlab.league.place import PLAN
from mmlab.league.plots import write_plots
from mmlab.league.results import LEAGUE, read_league
from mmlab.league.table import summary_lines, write_table
from mmlab.league.verdicts import write_verdicts


def report(folder: str | Path) -> list[str]:
    """Write the table, the plots and the verdicts of a run folder; lines for the terminal.

    ValueError if the folder holds no league.
    """
    folder = Path(folder)
    if not (folder / PLAN).is_file():
        raise ValueError(f"there is no league in {str(folder)!r}: it has no {PLAN}")
    table = write_table(folder)
    league = read_league(folder / LEAGUE)
    write_plots(folder, league)
    write_verdicts(folder, league)
    return summary_lines(table)
