"""Speed beside other libraries (`python -m sims.bench`), and figures and tests on a GPU (`make gpu`).

jobs.py            what is timed, each job beside its baseline
clip_job.py        CLIP's towers and training step beside open_clip's
devices_server.py  a sweep on K devices, for the job `devices`
report.py          the table and the JSON
gpu.py, gpu_parts.py  the parts of `make gpu`, each in a process of its own
baselines/         the same computations in NumPy, SciPy, PyTorch, scikit-learn, Flax and open_clip
"""
