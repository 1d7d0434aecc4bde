"""`python -m tests.crash [KILLS [SEED]]`: the whole crash programme; prints its figures, fails on a violation."""

import random
import sys
import tempfile
from pathlib import Path

from indexer.encoder import EncoderName, load_encoder
from tests.crash.checks import Encoding
from tests.crash.collection import Collection
from tests.crash.disk import Shortage, Shortages, full_disks
from tests.crash.exclusion import second_writers
from tests.crash.faults import ACTIONS, Sweep, sampled, sweep
from tests.crash.forks import Forks
from tests.crash.kills import Job, Tally, kill_at_random
from tests.crash.scenarios import Scenarios
from tests.crash.shim import compile_shim
from tests.models import new_model, save_model

_SHARD = ("--shard-size", "20")
# Finding near duplicates takes time, and writes nothing by itself.
_SMALL_SHARD = ("--shard-size", "4", "--near-duplicates", "0")
_CASES = 20


def main(folder: Path, kills: int = 300, seed: int = 0) -> bool:
    """Run everything in a folder, and return whether nothing was found."""
    model = save_model(folder / "model", new_model(0))
    encoding = Encoding(load_encoder(EncoderName(model=model), device="cpu", threads=1))
    wrong: list[str] = []
    with Forks(folder / "said", model) as forks:
        job = Job(forks, Collection(folder / "many", 200, seed), model, _SHARD)
        tally = kill_at_random(job, encoding, folder / "kills", kills, seed)
        _print_kills(tally)
        wrong += tally.violations
        refused = second_writers(job, encoding, folder / "kills" / "snapshots")
        print(f"\nTwo writers: {refused or 'the second was refused'}")
        wrong += refused
        job = Job(forks, Collection(folder / "few", 60, seed), model, _SHARD)
        (folder / "limited").mkdir()
        limited = Shortages(job, encoding, folder / "limited").limited_files(
            folder / "limited", _CASES, random.Random(seed)
        )
        _print_shortage("limited file size", limited)
        wrong += limited.violations
    full = full_disks(folder / "full", model, _CASES, seed)
    _print_shortage("full disk", full)
    wrong += full.violations if full else []
    wrong += _every_call(folder, model, encoding, seed)
    print("", *wrong, f"{len(wrong)} violations", sep="\n")
    return not wrong


def _every_call(folder: Path, model: str, encoding: Encoding, seed: int) -> list[str]:
    """Cut every call of every command short, and return what went wrong."""
    shim, wrong = compile_shim(folder), []
    if shim is None:
        print("\nEvery persistence call: not run, for there is no C compiler (cc)")
        return []
    with Forks(folder / "said too", model, shim) as forks:
        job = Job(forks, Collection(folder / "twelve", 12, seed), model, _SMALL_SHARD)
        scenarios = Scenarios(job, encoding, folder / "faults")
        for make in (scenarios.first, scenarios.resumed, scenarios.next, scenarios.rollback, scenarios.prune):
            told = sweep(forks, make(), folder / "faults", ACTIONS, sampled)
            _print_sweep(told)
            wrong += told.violations
    return wrong


def _print_kills(tally: Tally) -> None:
    print(f"{tally.kills} kills in {tally.rounds} rounds, {tally.seconds / max(tally.kills, 1):.2f} s for each")
    for moment, count in sorted(tally.moments.items()):
        print(f"  {count:>5}  in {moment}")
    kinds = {
        kind: sum(f" {kind}" in line for line in tally.violations) for kind in ("lost", "phantom", "doubled", "torn")
    }
    print("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    print(
        f"  {tally.encoded} pictures encoded, {tally.encoded_uninterrupted} without kills; "
        f"at most {tally.most_again} again for a kill"
    )
    print(f"  a reader opened the current snapshot {tally.opened} times")


def _print_shortage(name: str, told: Shortage | None) -> None:
    if told is None:
        print(f"\n{name}: not run, for user namespaces (unshare -Urm) are not permitted here")
    else:
        print(f"\n{name}: {told.cases} builds", *(f"{count} {kind}" for kind, count in told.outcomes.items()), sep=", ")


def _print_sweep(told: Sweep) -> None:
    print(f"\n{told.name}: {told.calls} calls, {told.points} of them cut short in each of {len(ACTIONS)} ways")
    for action in ACTIONS:
        kinds = ", ".join(f"{count} {kind}" for (each, kind), count in sorted(told.outcomes.items()) if each == action)
        print(f"  {action:<12} {kinds}")
    for said, count in told.said.most_common(5):
        print(f"  {count:>3} times: {said}")
    for name, count in told.litter.items():
        print(f"  litter: {name} ({count})")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        given = dict(zip(("kills", "seed"), map(int, sys.argv[1:]), strict=False))
        sys.exit(not main(Path(place), **given))
