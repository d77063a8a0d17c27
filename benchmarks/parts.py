"""Parts of the benchmark: each measures ours, a bare loop and peers in turns, and gives ratios.

A bare loop is the limit: the same model, dtype and threads on batches that lie in memory.
"""

from collections.abc import Callable

from benchmarks.harness import Found, Settings
from benchmarks.part_codecs import measure_codecs
from benchmarks.part_memory import measure_memory
from benchmarks.part_replicas import measure_replicas
from benchmarks.part_run import measure_run
from benchmarks.part_shape import measure_paper_shape
from benchmarks.part_start import measure_start
from benchmarks.part_student import measure_student, measure_workers
from benchmarks.part_teacher import measure_teacher

MEASURES: dict[str, Callable[[Settings], Found]] = {
    "start": measure_start,
    "paper_shape": measure_paper_shape,
    "teacher": measure_teacher,
    "student": measure_student,
    "workers": measure_workers,
    "run": measure_run,
    "replicas": measure_replicas,
    "codecs": measure_codecs,
    "memory": measure_memory,
}
