"""Every exception of the project.

    AsyncFlowError
    ├── UserError              the user can mend it: one message, no traceback, exit code 2
    │   ├── ConfigError        a key, a value or a combination of values of the configuration
    │   ├── ModelError         a model directory that is missing or does not fit
    │   ├── BrokerError        Kafka cannot be reached, or a topic has the wrong settings
    │   ├── PortError          a port that something else listens on
    │   ├── DiskError          no room, or no permission to write
    │   └── RunError           a run that exists already, does not exist, or is in use
    ├── ReasonedError          has a reason to count by
    │   ├── RecordError        bytes from outside that are not a valid record: a dead letter
    │   ├── EnvironmentFault   an environment raised, hung or said rubbish: its sample gets no reward
    │   └── RewardFault        a reward that cannot be computed here: its sample gets none
    ├── EngineError            an engine did not answer; another attempt may succeed
    │   ├── EngineUnavailable  there was no engine to ask: the request was not begun
    │   └── EngineLost         the engine broke off, or says that it is broken; it may have died of the request
    ├── EngineRefusal          an engine understood the request and refused it; no attempt will succeed
    ├── StateError             a checkpoint, manifest or weight file that does not verify
    ├── DivergedError          gradients are not finite any more: the next start goes back
    ├── FencedError            a newer process took over this one's transactional id
    └── ProcessDied            a process of the local stack, or of a reward, ended although it should run

To add one: derive it here, draw it above, and let its message say what was given, what was
expected and what to change. All arguments are passed to ``Exception.__init__`` so that every error
survives pickling (Beam and reward processes send them across process borders).
"""


class AsyncFlowError(Exception):
    """Base of all errors that this project raises on purpose."""


class UserError(AsyncFlowError):
    """Something that the user can mend; the command line prints the message and exits with 2."""


class ConfigError(UserError):
    """A configuration that cannot work: unknown key, wrong type, contradicting sizes."""


class ModelError(UserError):
    """A model directory that is missing, incomplete or of another shape than expected."""


class BrokerError(UserError):
    """Kafka cannot be reached, or a topic is missing or has the wrong settings."""


class PortError(UserError):
    """A port that was asked for by number and is taken."""


class DiskError(UserError):
    """No room left on the device, or no permission to write there."""


class RunError(UserError):
    """A run that exists already, does not exist, or is in use by another process."""


class ReasonedError(AsyncFlowError):
    """What went wrong as one word for counters and one sentence for people.

    Attributes:
        reason: one word for counters and dead letters, such as ``not_json``.
        detail: one sentence for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class RecordError(ReasonedError):
    """Bytes from outside that are not a valid record."""


class EngineError(AsyncFlowError):
    """An engine did not answer in time, closed the connection or answered 5xx."""


class EngineUnavailable(EngineError):
    """No engine took the request: connection refused, still starting, waiting for weights. No attempt was used up."""


class EngineLost(EngineError):
    """The connection broke while the engine was answering; it may have died of the request."""


class EngineRefusal(AsyncFlowError):
    """An engine understood the request and refused it (4xx): trying again is useless."""


class EnvironmentFault(ReasonedError):
    """What an environment did wrong: ``environment_error`` or ``environment_timeout``."""


class RewardFault(ReasonedError):
    """A reward that cannot be computed, for a reason that has nothing to do with the answer."""


class StateError(AsyncFlowError):
    """A checkpoint, a manifest or a weight file that does not verify."""


class DivergedError(AsyncFlowError):
    """Gradients were not finite for several steps in a row; the learner ends, and its next start goes back."""


class FencedError(AsyncFlowError):
    """A newer process holds this process's transactional id; this one has to stop."""


class ProcessDied(AsyncFlowError):
    """A process of the local stack ended although it should be running."""
