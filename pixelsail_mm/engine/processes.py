"""Start the processes of a run: torchrun that passes on the status with which they ended.

``python -m pixelsail_mm.engine.processes`` takes torchrun's arguments. torchrun itself ends with 1
whatever happened; scripts want to know a mistake of the user from a training that diverged.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    """Run until all processes have ended.

    Returns:
        int: 0, or the status of the process that failed first; 1 if a signal ended it.
    """
    try:
        run.main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        print(error, file=sys.stderr)
        return max(failure.exitcode, 1)
    return 0


if __name__ == '__main__':
    sys.exit(main())
