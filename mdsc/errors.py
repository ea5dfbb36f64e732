"""The one exception that is shown to a user as a message and not as a traceback."""


class UserError(ValueError):
    """A mistake in a file, a flag or a column that the user can mend.

    The message has one or two lines: what is wrong, named by file, column or flag, and what to do about it.
    The commands print it as ``error: ...`` and exit with code 2.
    """
