"""Errors that mean that the machine is short of open files, memory or processes for a while.

Such an error says nothing about its object: a directory that cannot be opened for lack of files is
not an empty one, and a program that cannot be started is not a missing one. The work is postponed
and tried again. Standard library only, besides clonepool's own errors and limits.
"""

from __future__ import annotations

import errno

from clonepool.core.limit_names import Limit
from clonepool.errors import ResourceError

_LIMITS = {
    errno.EMFILE: Limit.FILES,
    errno.ENFILE: Limit.FILES,
    errno.ENOMEM: Limit.MEMORY,
    errno.ENOBUFS: Limit.MEMORY,
}
_NO_THREAD = "can't start new thread"
OF_THE_MACHINE = (Limit.FILES, Limit.MEMORY, Limit.PROCESSES)
REMEDIES = {
    Limit.FILES: "it continues by itself when files are closed; otherwise raise the limit of open"
    " files (LimitNOFILE in the unit, `ulimit -n`, or fs.file-max of the machine)",
    Limit.MEMORY: "it continues by itself when memory is free; otherwise give the daemon more",
    Limit.PROCESSES: "it continues by itself when processes end; otherwise raise the limit of"
    " processes (TasksMax in the unit, `ulimit -u`)",
}


def shortage(error: BaseException, *, starting: bool = False) -> Limit | None:
    """Return the resource that an error says is short; None for any other error.

    Args:
        error: the error; of a group, one error is enough.
        starting: whether a program was being started: only then EAGAIN means processes.
    """
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, (shortage(each) for each in error.exceptions)), None)
    if isinstance(error, ResourceError):
        return Limit(error.limit) if error.limit in OF_THE_MACHINE else None
    if isinstance(error, MemoryError):
        return Limit.MEMORY
    number = error.errno if isinstance(error, OSError) else None
    no_thread = isinstance(error, RuntimeError) and str(error) == _NO_THREAD
    if no_thread or (starting and number == errno.EAGAIN):
        return Limit.PROCESSES
    return _LIMITS.get(number or 0)


def told(error: BaseException, doing: str, *, starting: bool = False) -> ResourceError | None:
    """Return the error to raise in place of one that means a shortage; None for any other error.

    Args:
        error: the error.
        doing: what was being done, for people.
        starting: as for `shortage`.
    """
    if isinstance(error, BaseExceptionGroup):
        each_told = (told(each, doing, starting=starting) for each in error.exceptions)
        return next(filter(None, each_told), None)
    if isinstance(error, ResourceError):
        return error if error.limit in OF_THE_MACHINE else None
    short = shortage(error, starting=starting)
    if short is None:
        return None
    said = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
    return ResourceError(f"{doing}: {said}", limit=short, remedy=REMEDIES[short])
