"""The closed set of exceptions. A job prints the message as one line and exits with 1.

A new class needs a caller that would do something else with it. Each takes one positional
message, because Ray pickles exceptions, puts it in one line and hides the secrets in it. Wording:
where: what was found, what was expected; what to do.
"""

from xdray.redaction import redact


class XdrayError(Exception):
    """Anything that the user, the data or the machine must change before the run can go on."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(" ".join(message.splitlines())))


class ConfigError(XdrayError):
    """The config cannot mean a run."""


class CorpusError(XdrayError):
    """Input text is malformed."""


class TargetsError(XdrayError):
    """Recorded targets are missing, unfinished, or of another teacher, tokenizer or tag set."""


class ClusterError(XdrayError):
    """The asked resources cannot be had, or a part of the cluster died too often."""


class TrainingError(XdrayError):
    """Non-finite loss, or nothing left to train; names stage and step."""


class ExportError(XdrayError):
    """The exported student does not repeat the checkpoint's logits."""
