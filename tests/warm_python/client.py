"""Stand for ``python`` on a command line: have the warm process run it, or run it cold.

``client.py SOCKET PYTHON ARGUMENTS...``. Arguments, folder, environment and the three standard
streams go to the server (see server.py); the exit status comes back. The real interpreter runs
instead if it gets options that a running one cannot take on (``-X``, ``-W`` ...), or variables that
libraries read when they are imported differ. Only light modules are imported.
"""

import array
import json
import os
import signal
import socket
import sys

# Read when libraries are imported; the server has imported them already.
AT_IMPORT = ('HF_', 'TRANSFORMERS_', 'OMP_', 'MKL_', 'BNB_', 'DS_', 'TORCH_', 'PYTHONWARNINGS')
# Set by torchrun for the processes it starts; read when they are used.
AT_USE = ('TORCHELASTIC_', 'TORCH_NCCL_')


def settings_at_import(environment: dict) -> dict:
    """Variables that must be the server's own."""
    return {
        key: value
        for key, value in environment.items()
        if key.startswith(AT_IMPORT) and not key.startswith(AT_USE)
    }


def can_run_warm(arguments: list, environment: dict, hello: dict) -> bool:
    """Whether a forked interpreter does what a new one would (with arguments after ``-u``)."""
    first = ''.join(arguments[:1])
    runs = first in ('-m', '-c') or first[:1] not in ('', '-')
    return runs and settings_at_import(environment) == hello['settings']


def main() -> None:
    """Run the command; end as it ended, by the same signal if one ended it."""
    path, python, *arguments = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    stream = server.makefile('rwb')
    hello = json.loads(stream.readline())
    unbuffered = arguments[:1] == ['-u']
    rest = arguments[unbuffered:]
    if not can_run_warm(rest, dict(os.environ), hello):
        server.close()
        os.execv(python, [python, *arguments])
    request = dict(
        arguments=rest, unbuffered=unbuffered, folder=os.getcwd(), environment=dict(os.environ)
    )
    descriptors = array.array('i', [0, 1, 2])
    server.sendmsg([b'.'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    stream.write(json.dumps(request).encode() + b'\n')
    stream.flush()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: server.sendall(b'%d\n' % number))
    status = json.loads(stream.readline())
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == '__main__':
    main()
