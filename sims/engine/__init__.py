"""What runs every experiment; it knows no theory. From the command line to the folder of results:

flags.py       flags, checked values, and one line and an exit code for what goes wrong
devices.py     flags of the engine, and the start of JAX that they ask for
grid.py        named axes -> blocks of one compiled shape -> devices
store.py       an experiment's folder: configuration, chunks with checksums, lock, checkpoints
runs.py        plan, measure what is missing, complete, load
files.py       files written whole or not at all
processes.py   work spread over processes of this machine
statistics.py  measured against predicted: probabilities, and when a difference is a finding
style.py       how figures look
"""
