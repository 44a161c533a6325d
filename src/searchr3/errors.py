"""Errors meant for the person at the keyboard: one line that names the place, the fault and the mend."""


class SearchR3Error(Exception):
    """Base of every error that the command line prints as one line, without a traceback."""


class DataError(SearchR3Error):
    """A data set, a file or a line of one cannot be used."""


class RecipeError(SearchR3Error):
    """A recipe holds an unknown key or a value out of range."""


class ModelError(SearchR3Error):
    """A model folder is missing something that searchr3 needs."""


class EndpointError(SearchR3Error):
    """A server that was asked for reasoning cannot be used as asked."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
