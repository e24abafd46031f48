"""Where runs come from: devices, processors and revisions, and whether their times can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sb3_pwm.benchmark.results import FAILED, FINISHED, Run

NOT_RECORDED = "not recorded"
REVISION_LENGTH = 10


def parts_of(run: Run) -> list[dict[str, Any]]:
    """Return the records of a run's parts: an interrupted one may have gone on elsewhere."""
    return [*run.record.get("earlier", []), run.record]


def device_of(run: Run, part: dict[str, Any]) -> str:
    """Return the device of a part of a run, with the GPU's name if it was recorded."""
    device = str((run.record.get("model") or {}).get("device", run.spec.device)).partition(":")[0]
    if device == "cuda":
        return f"GPU ({part.get('gpu') or f'name {NOT_RECORDED}'})"
    return {"cpu": "CPU"}.get(device, device)


def devices_of(run: Run) -> str:
    """Return the devices of a run's parts."""
    return _together(device_of(run, part) for part in parts_of(run))


def processors_of(run: Run) -> str:
    """Return the processors of a run's parts."""
    return _together(part["processor"] for part in parts_of(run))


def revisions_of(run: Run) -> str:
    """Return the revisions of a run's parts, shortened."""
    return _together(short_revision(part["git_revision"]) for part in parts_of(run))


def short_revision(revision: str | None) -> str:
    """Shorten a revision, and say so if files were changed since."""
    if revision is None:
        return NOT_RECORDED
    number, _, dirty = revision.partition("-")
    return number[:REVISION_LENGTH] + (" with changes" if dirty else "")


def _together(texts: Any) -> str:
    return ", then ".join(dict.fromkeys(texts))


@dataclass
class Origin:
    """What the runs of one algorithm were made with; those of other origins have a row of their own."""

    algo: str
    device: str
    processor: str
    threads: int
    revision: str
    envs: list[str]
    finished: int = 0
    failed: int = 0
    unfinished: int = 0


def origins(runs: Sequence[Run], algos: Sequence[str]) -> list[Origin]:
    """Return the origins of runs.

    :param runs: all runs, finished or not.
    :param algos: the order of the algorithms; others come last.
    """
    found: dict[tuple[str, str, str, int, str], Origin] = {}
    for run in sorted(runs, key=lambda run: (*algos, run.spec.name).index(run.spec.name)):
        key = (run.spec.name, devices_of(run), processors_of(run), run.spec.threads, revisions_of(run))
        origin = found.setdefault(key, Origin(*key, []))
        if run.spec.env not in origin.envs:
            origin.envs.append(run.spec.env)
        state = {FINISHED: "finished", FAILED: "failed"}.get(run.state, "unfinished")
        setattr(origin, state, getattr(origin, state) + 1)
    return list(found.values())


def why_times_differ(runs: Sequence[Run]) -> str | None:
    """Say why the times of an environment's runs cannot be compared; None if they can."""
    places = {(devices_of(run), processors_of(run), run.spec.threads) for run in runs}
    if len(places) > 1:
        return "the runs were not all on one device and processor with as many threads"
    (place,) = places
    return "the name of the GPU was not recorded" if NOT_RECORDED in place[0] else None
