"""A learner that writes manifests in place, where a reader sees the half of them."""

import sys

if "learn" in sys.orig_argv:
    import trainers.checkpoint
    from schemas.crash_points import crash_point

    def write(path, value):
        with path.open("wb", buffering=0) as stream:
            stream.write(value[: len(value) // 2])
            crash_point("after_manifest")
            stream.write(value[len(value) // 2 :])

    trainers.checkpoint.write_atomically = write
