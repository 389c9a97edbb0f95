"""Start the processes of a run: torchrun that passes on the status with which they ended.

``python -m pixelsail_mm.engine.processes`` takes torchrun's arguments. torchrun itself ends with 1
whatever happened; scripts want to know a mistake of the user from a training that diverged. It
passes SIGTERM and Ctrl-C on to the processes, and kills those that run 30 seconds later.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pixelsail_mm.errors import STOPPED


def main() -> int:
    """Run until all processes have ended.

    Returns:
        int: 0, or the status of the process that failed first; 1 if a signal ended it.
        :data:`~pixelsail_mm.errors.STOPPED` if a signal told this process to stop.
    """
    try:
        run.main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        print(error, file=sys.stderr)
        return max(failure.exitcode, 1)
    except SignalException as error:
        print(f'stopped by {error.sigval.name}; all processes have ended', file=sys.stderr)
        return STOPPED
    return 0


if __name__ == '__main__':
    sys.exit(main())
