"""A dask cluster of two worker processes; `python -m tests.converters.dask_cluster` prints its
address and runs until its standard input is closed."""

from __future__ import annotations

import sys
import tempfile

if __name__ == "__main__":
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
            local_directory=folder, silence_logs=50,
        ) as cluster,
    ):  # fmt: skip
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
