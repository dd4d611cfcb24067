"""What processes print: one line an event, on standard error, the time in UTC."""

import logging
import sys

import structlog


def configure_logging() -> None:
    """Sends structlog and the standard library's logging to standard error.

    Standard output is for results alone.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _StandardError(),
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Beam says at every import that it was installed without Google's clients.
    logging.getLogger().addFilter(lambda record: "apitools" not in record.getMessage())
    # It reports each of twenty attempts a second; what it means for us is said once, by whoever needed Kafka.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


class _StandardError:
    """Looks up ``sys.stderr`` at every line: a live table replaces it for a while."""

    def msg(self, message: str) -> None:
        sys.stderr.write(message + "\n")

    debug = info = warning = error = critical = fatal = exception = log = msg
