"""A process that has imported the packages, and forks itself for every command it is sent.

Importing PyTorch, MMEngine, Transformers and DeepSpeed takes ten seconds of a core; the suite runs
some hundred commands. Each still has a process of its own, with its arguments, folder, environment
and streams; only the imports are shared. What is about starting itself (import times, Ctrl-C,
other variables) runs in a real interpreter.

``python -m tests.warm_python.server FD``, from the top of the tree, serves on a listening socket
until its standard input ends, which is when the tests end.
"""

import array
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
from importlib import import_module

from tests.warm_python.client import settings_at_import

# In the order in which a command meets them.
PRELOADED = (
    'pixelsail_mm.apis',
    'pixelsail_mm.engine.runner_factory',
    'pixelsail_mm.worlds.shapes_world',
    'torch.distributed.run',
    'transformers.models.qwen2.modeling_qwen2',
    'deepspeed',
)


def receive(connection: socket.socket) -> tuple:
    """Read a request and the three descriptors of its streams."""
    size = array.array('i').itemsize
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * size))
    [(_, _, data)] = ancillary
    descriptors = array.array('i')
    descriptors.frombytes(data[: 3 * size])
    with connection.makefile('rb') as stream:
        return json.loads(stream.readline()), list(descriptors)


def become(request: dict, descriptors: list) -> None:
    """Take on folder, environment and streams of a command."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request['folder'])
    os.environ.clear()
    os.environ.update(request['environment'])
    if request['unbuffered']:
        sys.stdout.reconfigure(write_through=True)


def reseed() -> None:
    """Give the command random numbers of its own, as a new interpreter has."""
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()


def execute(arguments: list, base_path: list) -> None:
    """Run ``script ...``, ``-m module ...`` or ``-c code ...`` as the interpreter would."""
    first, *rest = arguments
    paths = [path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep) if path]
    if first == '-c':
        code, *rest = rest
        sys.argv, sys.path[:] = ['-c', *rest], ['', *paths, *base_path]
        exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})  # noqa: S102
    elif first == '-m':
        module, *rest = rest
        sys.argv, sys.path[:] = [module, *rest], [os.getcwd(), *paths, *base_path]
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    else:
        sys.argv, sys.path[:] = arguments, [os.path.dirname(first), *paths, *base_path]
        runpy.run_path(first, run_name='__main__')


def watch(connection: socket.socket, runner: int) -> None:
    """Pass signals on to a command, and its status back; end it when nobody waits any more."""
    ended = os.pidfd_open(runner)
    while True:
        ready, _, _ = select.select([connection, ended], [], [])
        if ended in ready:
            _, status = os.waitpid(runner, 0)
            connection.sendall(b'%d\n' % os.waitstatus_to_exitcode(status))
            return
        lines = connection.recv(64).split()
        if not lines:
            os.kill(runner, signal.SIGKILL)
            return
        for line in lines:
            os.kill(runner, int(line))


def serve(server: socket.socket) -> tuple | None:
    """Answer until standard input ends.

    Returns:
        tuple | None: In a process that shall run a command: request and descriptors.
    """
    hello = json.dumps(dict(settings=settings_at_import(dict(os.environ)))).encode() + b'\n'
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers need nobody to wait for them
    while True:
        ready, _, _ = select.select([server, 0], [], [])
        if 0 in ready:
            return None
        connection, _ = server.accept()
        if os.fork():
            connection.close()
            continue
        server.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            connection.sendall(hello)
            request, descriptors = receive(connection)
        except (OSError, ValueError):  # the client runs the command itself
            os._exit(0)
        runner = os.fork()
        if runner == 0:
            connection.close()
            return request, descriptors
        watch(connection, runner)
        os._exit(0)


def main() -> None:
    """Import, serve, and in a forked process run a command."""
    server = socket.socket(fileno=int(sys.argv[1]))  # clients wait in its queue meanwhile
    for name in PRELOADED:
        import_module(name)
    base_path = sys.path[1:]  # without the top of the tree
    gc.freeze()  # a collection in a forked process would copy every page
    job = serve(server)
    if job is not None:
        request, descriptors = job
        become(request, descriptors)
        reseed()
        execute(request['arguments'], base_path)


if __name__ == '__main__':
    main()
