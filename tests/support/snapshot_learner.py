"""A learner's publishing half as a process: versions whose every number is the version, on a device.

    python -m tests.support.snapshot_learner ROOT TRANSPORT DEVICE MEGABYTES

Each line on the standard input is a version to publish; each line on the standard output is the sha256 of
the manifest of one that is published.
"""

import sys


def tensors_of(version, device, megabytes):
    """Two tensors, the larger of about so many MB."""
    import torch

    matrix = torch.full((megabytes << 9, 1024), float(version), dtype=torch.bfloat16, device=device)
    return {"matrix": matrix, "norm": torch.full((7,), float(version), device=device)}


def main():
    import structlog

    from schemas.config import WeightsConfig
    from trainers.publish import Facts, WeightStore

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    root, transport, device, megabytes = sys.argv[1:]
    store = WeightStore(WeightsConfig(root=root, transport=transport, timeout_s=20))
    for line in sys.stdin:
        version = int(line)
        tensors = tensors_of(version, device, int(megabytes))
        digest = store.write(tensors, Facts(version, version, "bfloat16"), dict)
        sys.stdout.write(f"{digest}\n")
        sys.stdout.flush()
    store.close()


if __name__ == "__main__":
    main()
