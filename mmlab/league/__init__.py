"""The league: every system, the same scenes, the same budget, every task."""
