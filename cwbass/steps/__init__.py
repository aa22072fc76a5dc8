"""What the stages do. The CLI, the DVC stages and the pipeline's components call these alone.

A step takes its own sections of params.yaml and paths, reads no environment and no arguments,
writes below its output folder, and returns a small frozen report.

Importing it is all that these callers have in common, so freed memory is kept from here on
(docs/decisions/0032-freed-memory-is-kept.md).
"""

from cwbass.memory import keep_freed_memory

keep_freed_memory()
