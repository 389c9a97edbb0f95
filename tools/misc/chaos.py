#!/usr/bin/env python
"""Train while processes are killed and stopped, checkpoints corrupted and the disk filled.

    python tools/misc/chaos.py --seeds 10 --out work_dirs/chaos

Each seed trains pixelsail_mini in two processes and continues with --resume after each fault. It
must end with the weights of an undisturbed run: exactly with data parallel copies, within 1e-6 with
ZeRO (the seeds take none, zero1, zero2, zero3 in turn). What each seed did goes to OUT/report.md; a
seed that is done is not run again. Needs psutil; filling the disk needs the right to mount a tmpfs.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/pixelsail/pixelsail_mini.py'
STRATEGIES = ('none', 'zero1', 'zero2', 'zero3')
STOPPED, HUNG = 75, 4
# Seconds: a start, from the fault to the end of all processes (a stopped rank is noticed after
# LIMIT, and torchrun waits 30 for it), a whole seed.
START, END, SEED, LIMIT = 240, 150, 3600, 40
OPTIONS = (
    *('val_dataloader=None', 'val_cfg=None', 'val_evaluator=None', 'custom_hooks=None'),
    *('train_dataloader.batch_size=2', 'train_dataloader.num_workers=2'),
    *('train_dataloader.persistent_workers=True', 'default_hooks.logger.interval=5'),
    *('default_hooks.checkpoint.interval=50', 'default_hooks.checkpoint.max_keep_ckpts=3'),
    *(f'default_hooks.watchdog.step={LIMIT}', f'default_hooks.watchdog.data={LIMIT}'),
)


class Broken(Exception):
    """A promise was not kept."""


class Training:
    """A training in two processes, from one start to its end.

    Args:
        folder: Its work directory.
        strategy: ``none`` or a ZeRO stage.
        steps: Iterations of the whole training.
        data: Folder of the ShapesWorld.
        log: File that all output goes to.
    """

    def __init__(self, folder: Path, strategy: str, steps: int, data: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        with open(log, 'a') as output:
            self.begun = output.tell()
            self.launcher = psutil.Popen(
                [
                    *('bash', 'tools/dist_train.sh', CONFIG, '2', '--deepspeed', strategy),
                    *('--work-dir', str(folder), '--resume', '--cfg-options'),
                    *(*OPTIONS, f'train_cfg.max_iters={steps}'),
                ],
                cwd=ROOT,
                env=dict(os.environ, PIXELSAIL_DATA=str(data), PYTHON=sys.executable),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()

    def ranks(self) -> list[psutil.Process]:
        """The two processes that train."""
        with suppress(psutil.Error):
            found = [
                child
                for child in self.launcher.children()
                if any(part.endswith('train.py') for part in child.cmdline())
            ]
            self.seen.update(found)
            return sorted(found, key=lambda process: process.pid)
        return []

    def workers(self) -> list[psutil.Process]:
        """The data loader workers of both."""
        found = []
        for rank in self.ranks():
            with suppress(psutil.Error):
                found += rank.children(recursive=True)
        self.seen.update(found)
        return found

    def iteration(self) -> int:
        """Last iteration that this start has told; 0 before the first."""
        with open(self.log, errors='replace') as output:
            output.seek(self.begun)
            done = re.findall(r'Iter\(train\) \[ *(\d+)/', output.read())
        return int(done[-1]) if done else 0

    def wait_for(self, iteration: int, seconds: float) -> bool:
        """Wait until this start has logged an iteration; False if it ended before."""
        end = time.monotonic() + seconds
        while self.iteration() < iteration:
            if self.launcher.poll() is not None:
                return False
            if time.monotonic() > end:
                raise Broken(f'iteration {iteration} was not reached in {seconds:.0f} s')
            time.sleep(0.2)
        return True

    def wait_for_end(self, seconds: float) -> int:
        """Status of the launcher, when all processes have ended."""
        end = time.monotonic() + seconds
        while self.launcher.poll() is None and time.monotonic() < end:
            self.workers()
            time.sleep(0.2)
        if self.launcher.poll() is None:
            raise Broken(f'still running {seconds:.0f} s after the fault')
        _, alive = psutil.wait_procs(list(self.seen), timeout=max(end - time.monotonic(), 1))
        if alive:
            raise Broken(f'{len(alive)} processes outlive the launcher')
        return self.launcher.poll()

    def end(self) -> None:
        """Kill all that is left."""
        for process in [*self.workers(), *self.seen, self.launcher]:
            with suppress(psutil.Error):
                process.kill()


def _kill(process: psutil.Process, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(psutil.NoSuchProcess):  # it ended a moment ago
        process.send_signal(number)


def kill_rank(run: Training, rng: random.Random) -> str:
    """Kill one of the two."""
    run.workers()
    _kill(rng.choice(run.ranks()))
    return 'ends'


def kill_worker(run: Training, rng: random.Random) -> str:
    """Kill a worker of a data loader."""
    _kill(rng.choice(run.workers()))
    return 'ends'


def kill_launcher(run: Training, rng: random.Random) -> str:
    """Kill what started the two; they save and end."""
    run.workers()
    _kill(run.launcher)
    return 'ends'


def stop_rank(run: Training, rng: random.Random) -> str:
    """Stop one for ever; the other one notices."""
    run.workers()
    _kill(rng.choice(run.ranks()), signal.SIGSTOP)
    return 'ends'


def pause_rank(run: Training, rng: random.Random) -> str:
    """Stop one for some seconds."""
    rank = rng.choice(run.ranks())
    _kill(rank, signal.SIGSTOP)
    time.sleep(rng.uniform(1, 5))
    _kill(rank, signal.SIGCONT)
    return 'goes on'


def terminate(run: Training, rng: random.Random) -> str:
    """SIGTERM to the launcher, as a scheduler sends it."""
    run.workers()
    _kill(run.launcher, signal.SIGTERM)
    return 'saves'


def interrupt(run: Training, rng: random.Random) -> str:
    """Ctrl-C: SIGINT to all processes of the terminal."""
    run.workers()
    os.killpg(run.launcher.pid, signal.SIGINT)
    return 'saves'


def corrupt(run: Training, rng: random.Random) -> str:
    """Kill all in the middle of something, then flip a byte of the newest checkpoint, or cut it."""
    for process in [run.launcher, *run.ranks(), *run.workers()]:
        _kill(process)
    psutil.wait_procs(list(run.seen), timeout=30)
    newest = max(
        run.folder.glob('iter_*.pth'), key=lambda path: int(path.stem.split('_')[1]), default=None
    )
    if newest is not None:
        inside = (path for path in newest.rglob('*') if path.is_file() and path.stat().st_size)
        files = [newest] if newest.is_file() else sorted(inside)
        file = rng.choice(files)
        content = bytearray(file.read_bytes())
        place = rng.randrange(len(content))
        if rng.random() < 0.5:
            content[place] ^= 1 << rng.randrange(8)
        else:
            del content[place:]
        file.write_bytes(content)
    return 'ends'


def fill_disk(run: Training, rng: random.Random) -> str:
    """Take all free space away until the next save has failed, then give it back."""
    ballast = run.folder / 'ballast'
    before = run.iteration()
    with suppress(OSError), open(ballast, 'wb', buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    try:
        run.wait_for(before + 60, END)
    finally:
        ballast.unlink()
    return 'goes on'


FAULTS = (
    kill_rank, kill_worker, kill_launcher, stop_rank, pause_rank, terminate, interrupt, corrupt,
    fill_disk,
)  # fmt: skip


@contextmanager
def small_disk(folder: Path, megabytes: int):
    """A file system of its own for a folder; gives whether there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(['umount', '-l', str(folder)], check=True)


def disturb(start, steps: int, faults: list, rng: random.Random) -> list[dict]:
    """Train to the end; a list with each fault, its iteration and what happened.

    Raises:
        Broken: A process hung, outlived its parent, or ended with the wrong status.
    """
    done, run = [], start()
    try:
        for fault in faults:
            first = run.iteration() or (run.wait_for(1, START) and run.iteration())
            if not run.wait_for(first + rng.randint(5, 2 * steps // len(faults) // 3), START):
                break  # trained to the end before
            time.sleep(rng.uniform(0, 1))
            record = dict(fault=fault.__name__, iteration=run.iteration())
            promise = fault(run, rng)
            if promise == 'goes on':
                if not run.wait_for(run.iteration() + 5, END):
                    raise Broken(f'{fault.__name__}: ended with {run.launcher.poll()}')
                record['status'] = 'went on'
            else:
                record['status'] = run.wait_for_end(END)
                if promise == 'saves' and record['status'] not in (STOPPED, 0):
                    raise Broken(f'{fault.__name__}: status {record["status"]}')
                run = start()
            done.append(record)
            print(f'  {record}', flush=True)
        status = run.wait_for_end(SEED)
        if status != 0:
            raise Broken(f'the last start ended with {status}')
    finally:
        run.end()
    return done


def difference(one: Path, two: Path) -> float:
    """Largest difference of the weights of two trainings."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / 'model.safetensors') for folder in (one, two))
    if first.keys() != second.keys():
        raise Broken('the trainings have other weights')
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


def run_seed(seed: int, args: argparse.Namespace, data: Path) -> dict:
    """One seed: the undisturbed training of its strategy if it is missing, then the other one."""
    rng, strategy = random.Random(seed), STRATEGIES[seed % len(STRATEGIES)]
    calm = args.out / f'undisturbed_{strategy}'
    result = dict(seed=seed, strategy=strategy, begun=time.strftime('%Y-%m-%d %H:%M'))
    start = time.monotonic()
    try:
        if not (calm / 'model.safetensors').is_file():
            run = Training(calm, strategy, args.steps, data, args.out / f'{calm.name}.log')
            if run.wait_for_end(SEED) != 0:
                raise Broken('the undisturbed training failed')
        folder, log = args.out / f'seed_{seed}', args.out / f'seed_{seed}.log'
        with small_disk(folder, args.disk) as limited:
            kinds = [fault for fault in FAULTS if limited or fault is not fill_disk]
            faults = rng.sample(kinds, len(kinds)) + rng.choices(kinds, k=args.faults)
            start = time.monotonic()
            result['faults'] = disturb(
                lambda: Training(folder, strategy, args.steps, data, log),
                args.steps,
                faults[: args.faults],
                rng,
            )
            result['difference'] = difference(folder, calm)
    except Broken as error:
        result['broken'] = str(error)
    result['seconds'] = round(time.monotonic() - start)
    result['kept'] = 'broken' not in result and result['difference'] <= (
        0 if strategy == 'none' else 1e-6
    )
    return result


def report(results: list[dict], steps: int) -> str:
    """Table of all seeds."""
    rows = [
        f'{steps} iterations, two processes; in brackets iteration and exit status of each fault.',
        '',
        '| seed | strategy | faults | difference of the weights | seconds |',
        '|---|---|---|---|---|',
    ]
    for result in results:
        faults = ', '.join(
            f'{fault["fault"]} ({fault["iteration"]}: {fault["status"]})'
            for fault in result.get('faults', ())
        )
        found = result.get('broken') or f'{result["difference"]:.2g}'
        cells = (result['seed'], result['strategy'], faults, found, result['seconds'])
        rows.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(rows) + '\n'


def main() -> int:
    """Run the seeds that are not done; 1 if one broke a promise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seeds', type=int, default=10, help='seeds 0 ... N-1 (default 10)')
    parser.add_argument('--steps', type=int, default=1500, help='iterations (default 1500)')
    parser.add_argument('--faults', type=int, default=9, help='faults of a seed (default 9)')
    parser.add_argument('--disk', type=int, default=256, help='MB for a work dir (default 256)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/chaos'))
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / 'data'
    if not data.is_dir():
        make = [sys.executable, 'tools/dataset_converters/make_shapes_world.py', '--preset', 'mini']
        sizes = ['--train', '256', '--val', '8', '--test', '8']
        subprocess.run([*make, *sizes, '--out', str(data)], cwd=ROOT, check=True)
    done = args.out / 'results.json'
    results = json.loads(done.read_text()) if done.is_file() else []
    for seed in range(args.seeds):
        if seed in [result['seed'] for result in results]:
            continue
        print(f'seed {seed} ({STRATEGIES[seed % len(STRATEGIES)]})', flush=True)
        results.append(run_seed(seed, args, data))
        print(f'  {results[-1]}', flush=True)
        done.write_text(json.dumps(results, indent=2))
        (args.out / 'report.md').write_text(report(results, args.steps))
    print(report(results, args.steps))
    return int(not all(result['kept'] for result in results))


if __name__ == '__main__':
    sys.exit(main())
