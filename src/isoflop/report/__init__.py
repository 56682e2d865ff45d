"""The report: `isoflop report RUNS… -o report.html` makes one file of all that the runs say."""
