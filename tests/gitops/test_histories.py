"""Two hundred histories of an index, judged as Argo CD and Flux judge them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from gitops.histories import State, Verdict, history, stage_in
from gitops.judges import argo_cd, flux
from pipeline.build import kstatus
from polaris_cli.up.postgres import LocalPostgres
from soak import times

pytestmark = pytest.mark.postgres


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_at_every_state_of_every_history_each_tool_says_what_is_the_case(postgres: LocalPostgres) -> None:
    with stage_in(postgres) as stage:
        states = [state for seed in range(times(6, 200)) for state in history(stage, seed).states]

    seen = [state.seen for state in states]
    told: dict[str, tuple[list[str], list[list[str]]]] = {
        "kstatus": (kstatus(seen), [[v.value[0] for v in s.verdicts("ready")] for s in states]),
        "Argo CD": (argo_cd("ready", seen), [[v.value[1] for v in s.verdicts("ready")] for s in states]),
        "Argo CD, Serving": (
            argo_cd("serving", seen),
            [[v.value[1] for v in s.verdicts("serving")] for s in states],
        ),
        "Flux": (flux("ready", seen), [[_of_flux(v) for v in s.verdicts("ready")] for s in states]),
        "Flux, Serving": (
            flux("serving", seen),
            [[_of_flux(v) for v in s.verdicts("serving")] for s in states],
        ),
    }
    print(len(states), "states;", dict(Counter(state.ready.name for state in states)))
    print("serving:", dict(Counter(state.serving.name for state in states)))
    told_late = [
        state for state, said in zip(states, told["kstatus"][0], strict=True) if said != state.ready.value[0]
    ]
    print("said to be under way, and just done:", len(told_late))
    wrong = {
        who: [_shown(state, a, b) for state, a, b in zip(states, said, wanted, strict=True) if a not in b]
        for who, (said, wanted) in told.items()
    }
    assert not any(wrong.values()), "\n".join(
        f"{who}: {line}" for who, lines in wrong.items() for line in lines
    )


def _of_flux(verdict: Verdict) -> str:
    # With expressions of one's own Flux asks nobody else whether an object is being deleted.
    return "InProgress" if verdict == Verdict.GOING else str(verdict.value[0])


def _shown(state: State, said: str, wanted: Sequence[str]) -> str:
    conditions = [
        f"{c['type']}={c['status']}/{c['reason']}: {c['message'][:90]}"
        for c in state.seen["status"].get("conditions", ())
    ]
    where = f"after {state.after} ({state.differs}), of {state.seen['metadata']}"
    return f"{said}, not {wanted}, {where}: {conditions}"
