"""The engine that runs every experiment, from the command line to the folder of results. It knows no theory.

flags.py       flags, checks of their values, and exit codes with one line for each error
devices.py     the engine's own flags, and the start of JAX with them
command.py     a checked config -> the experiment's results and exit code
grid.py        named axes -> blocks of one compiled shape -> devices
store.py       an experiment's folder: configuration, chunks with checksums, lock, checkpoints
runs.py        plan, measure what is missing, add the predictions, load, show
files.py       atomic writes, probes of folders, locks
processes.py   a map over processes of this machine; its cores and memory
statistics.py  measured against predicted: p-values and z-scores
tables.py      tables as text
lines.py       ID-OOD lines: fits, two arms at matched ID accuracy, intervals
style.py       colours, markers and titles of figures
"""
