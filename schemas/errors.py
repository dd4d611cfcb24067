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
    │   ├── RewardFault        a reward that cannot be computed here: its sample gets none
    │   └── VerdictError       a judge or a reward model gave no number: its sample gets no reward
    ├── ServiceError           a judge or a reward model did not answer; another attempt may succeed
    │   └── ServiceUnavailable it did not take the request: nothing is said of the answer that it is about
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


class VerdictError(ReasonedError):
    """No number came of a judge or a reward model, or no reply of a model that plays a user.

    The reason begins with the reward's name, or with ``user``.
    """


class ServiceError(AsyncFlowError):
    """A judge or a reward model broke off, took too long or said rubbish; it may be the answer's fault."""


class ServiceUnavailable(ServiceError):
    """It did not take the request: connection refused, too busy, wrong key, moved. No attempt was used up.

    Attributes:
        retry_after_s: when it wants to be asked again, 0 if it does not say.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class StateError(AsyncFlowError):
    """A checkpoint, a manifest or a weight file that does not verify."""


class DivergedError(AsyncFlowError):
    """Gradients were not finite for several steps in a row; the learner ends, and its next start goes back."""


class FencedError(AsyncFlowError):
    """A newer process holds this process's transactional id; this one has to stop."""


class ProcessDied(AsyncFlowError):
    """A process of the local stack ended although it should be running."""
