"""What a job raises when its input or its output folder is not what it needs."""


class PipelineError(Exception):
    """A job cannot go on; the message says what was wrong, expected, got, and what to do."""
