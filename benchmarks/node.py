"""A thousand studies by eight senders at once, the node killed with SIGKILL meanwhile: none lost?

Everything is a process: the node, its workers (`qinjing serve node`, `qinjing serve work`), an
archive that takes their answers, and senders, which send a study again until all of it was answered
with success, as a PACS does. A study is 20 CT slices. Workers de-identify each complete study and
send the copy to the archive. Counted at the end: rows, files, jobs, and what the archive has, by
UID. A study whose sender was held up for longer than the node waits is answered in two revisions.
`studies_per_s` is from the first instance sent to the last study answered.

    .venv/bin/python benchmarks/node.py --studies 1000 --kills 10 -o benchmarks/results/node.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from qinjing.config import write_json
from qinjing.engine.device import environment
from qinjing.serve.catalogue import open_catalogue

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.serve.dicom import instance  # noqa: E402


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(log: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "qinjing", "serve", *words]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def send(port: int, studies: list[int], slices: int, size: int, faults: Any) -> None:
    """Send studies one after the other, each until all of it was taken."""
    for study in studies:
        datasets = [instance(study, number, size) for number in range(slices)]
        while datasets:
            ae = AE(ae_title="SCANNER")
            ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
            ae.acse_timeout = ae.connection_timeout = ae.dimse_timeout = 20.0
            try:
                association = ae.associate("127.0.0.1", port, ae_title="QINJING")
                if not association.is_established:
                    raise ConnectionError
                while datasets:
                    if association.send_c_store(datasets[0]).get("Status") != 0:
                        raise ConnectionError
                    datasets.pop(0)
                association.release()
            except (ConnectionError, RuntimeError, ValueError):
                with faults.get_lock():
                    faults.value += 1
                time.sleep(0.2)


def archive(port: int, got: Any) -> None:
    """Take everything; tell the UIDs."""
    ae = AE(ae_title="ARCHIVE")
    ae.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)

    def take(event: Any) -> int:
        got.put((str(event.dataset.StudyInstanceUID), str(event.dataset.SOPInstanceUID)))
        return 0

    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, take)])


def drain(got: Any, seen: Counter[tuple[str, str]]) -> None:
    while not got.empty():
        seen[got.get()] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/node"))
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="rows and columns")
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--worker-kills", type=int, default=2)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    folder, port, other = options.work / "studies", free_port(), free_port()
    secret = options.work / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(os.urandom(32).hex().encode())
    node_words = ("node", "-o", str(folder), "--port", str(port), "--do", "deidentify",
                  "--callers", "SCANNER", "--quiet", "3")  # fmt: skip
    work_words = ("work", "-o", str(folder), "--do", "deidentify", "--secret", str(secret),
                  "--send-to", f"ARCHIVE@127.0.0.1:{other}")  # fmt: skip
    context = multiprocessing.get_context("fork")
    got, faults = context.Queue(), context.Value("i", 0)
    seen: Counter[tuple[str, str]] = Counter()
    taker = context.Process(target=archive, args=(other, got), daemon=True)
    taker.start()
    node = start(options.work / "node.log", *node_words)
    workers = [start(options.work / "work.log", *work_words) for _ in range(options.workers)]
    numbers = list(range(1, options.studies + 1))
    began = time.monotonic()
    senders = [
        context.Process(
            target=send,
            args=(port, numbers[k :: options.senders], options.slices, options.size, faults),
        )
        for k in range(options.senders)
    ]
    for sender in senders:
        sender.start()
    rng = random.Random(0)
    kills = worker_kills = 0
    received_s = 0.0
    catalogue, every = None, options.studies * options.slices
    try:
        while True:
            time.sleep(0.5)
            drain(got, seen)
            if any(worker.poll() is not None for worker in workers):
                raise SystemExit(f"a worker ended: see {options.work / 'work.log'}")
            if catalogue is None:
                if not (folder / "catalogue.sqlite").exists():
                    continue
                time.sleep(2)
                catalogue = open_catalogue(folder)
            count = _count(catalogue)
            share = count / (options.studies * options.slices)
            if kills < options.kills and share > (kills + 0.5) / (options.kills + 1):
                node.kill()
                node.wait()
                kills += 1
                time.sleep(rng.uniform(0, 1))
                node = start(options.work / "node.log", *node_words)
                print(f"killed the node at {share:.0%}", flush=True)
            done = len(catalogue.queue.of(state="done"))
            wanted = (worker_kills + 1) / (options.worker_kills + 1) * 0.9 * options.studies
            if worker_kills < options.worker_kills and done > wanted:
                workers[0].kill()
                workers[0].wait()
                worker_kills += 1
                workers[0] = start(options.work / "work.log", *work_words)
                print(f"killed a worker after {done} studies", flush=True)
            if not received_s and not any(sender.is_alive() for sender in senders):
                received_s = time.monotonic() - began
                print(f"all sent after {received_s:.0f} s, {done} answered", flush=True)
            if received_s and len(seen) == every and _settled(catalogue):
                break
        answered_s = time.monotonic() - began
        time.sleep(2)
        drain(got, seen)
        report = {
            "studies": options.studies,
            "slices": options.slices,
            "megabytes_a_study": round(options.slices * options.size**2 * 2 / 1e6, 2),
            "senders": options.senders,
            "workers": options.workers,
            "node_killed": kills,
            "workers_killed": worker_kills,
            "associations_lost": faults.value,
            "instances_recorded": _count(catalogue),
            "files_kept": sum(1 for _ in (folder / "instances").rglob("*.dcm")),
            "jobs": dict(Counter(job.state for job in catalogue.queue.of())),
            "studies_at_the_archive": len({study for study, _ in seen}),
            "instances_at_the_archive": len(seen),
            "sent_to_the_archive": sum(seen.values()),
            "received_s": round(received_s, 1),
            "answered_s": round(answered_s, 1),
            "studies_per_s": round(options.studies / answered_s, 3),
            "log_bytes_with_an_identifier": _named(options.work),
            "cpu_s": {
                name: _cpu_s(pid)
                for name, pid in (
                    ("node_since_its_last_start", node.pid),
                    ("second_worker", workers[1].pid),
                )
            },
            "environment": environment(),
        }
        report["met"] = (
            report["instances_recorded"] == report["files_kept"] == every
            and set(report["jobs"]) == {"done"}
            and report["studies_at_the_archive"] == options.studies
            and report["instances_at_the_archive"] == every
        )
    finally:
        for process in (node, *workers):
            process.send_signal(signal.SIGKILL)
        for sender in senders:
            sender.kill()
        taker.kill()
    print(json.dumps(report, indent=2))
    if options.output:
        write_json(options.output, report)
    return 0 if report["met"] else 1


def _count(catalogue: Any) -> int:
    with catalogue.database.connected() as connection:
        return int(connection.exec_driver_sql("SELECT COUNT(*) FROM instance").scalar() or 0)


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round((int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK"), 1)


def _settled(catalogue: Any) -> bool:
    """Whether every study's last instance is behind a job, and every job is done."""
    return not (
        catalogue.queue_quiet(3.0, ["deidentify"])
        or catalogue.queue.of(state="waiting")
        or catalogue.queue.of(state="taken")
    )


def _named(folder: Path) -> int:
    """How often a name, a number or a birth date of a patient stands in the logs."""
    words = (b"Canary", b"MRN0", b"19500203", b"ACC1")
    return sum(log.read_bytes().count(word) for log in folder.glob("*.log") for word in words)


if __name__ == "__main__":
    threading.stack_size(256 * 1024)
    raise SystemExit(main())
