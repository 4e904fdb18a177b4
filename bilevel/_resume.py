"""Whether the saved state of a loop fits a running one, looked at before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bilevel.errors import InputError

State = dict[str, Any]


def check_fits(state: State, running: State, adjoint_size: int) -> None:
    """Refuse a state that the loop whose own state is ``running`` could not go on from.

    Raises:
        InputError: it names the entry, what was found, and what was wanted.
    """
    missing = running.keys() - state.keys()
    if missing:
        raise InputError(f"state lacks {', '.join(sorted(missing))}.")
    for name in ("calls", "pending"):
        if type(state[name]) is not int or state[name] < 0:
            raise InputError(f"{name} in state is {state[name]!r}; wanted a count.")
    if type(state["recyclable"]) is not bool:
        raise InputError(f"recyclable in state is {state['recyclable']!r}; wanted True or False.")
    if type(state["solver"]) is not str:
        raise InputError(f"solver in state is {state['solver']!r}; wanted its name.")
    for name in ("phi", "theta"):
        _check_leaves(state[name], running[name], name)
    if state["pending"]:
        _check_leaves(state["gathered"], running["phi"], "gathered")
    for name in ("outer_optimizer", "inner_optimizer"):
        _check_optimizer(state[name], running[name], name)
    for name in ("outer_scheduler", "inner_scheduler"):
        _check_scheduler(state[name], running[name], name)
    _check_adjoints(state["adjoints"], running["theta"][0], adjoint_size)
    kept = state["solver_state"]
    if kept is not None and not _is_dict_of_tensors(kept):
        raise InputError("solver_state in state is neither None nor a dict of tensors.")
    if not _is_dict_of_tensors(state["rng"]) or "cpu" not in state["rng"]:
        raise InputError("rng in state lacks the random state of the CPU.")


def _check_leaves(saved: Any, leaves: Sequence[Tensor], name: str) -> None:
    if not isinstance(saved, list | tuple) or len(saved) != len(leaves):
        raise InputError(f"{name} in state does not have {len(leaves)} leaf/leaves.")
    for index, (found, wanted) in enumerate(zip(saved, leaves, strict=True)):
        if _kind(found) != _kind(wanted):
            raise InputError(
                f"leaf {index} of {name} in state is {_kind(found)}; wanted {_kind(wanted)}."
            )
        _check_finite(found, f"leaf {index} of {name} in state")


def _check_optimizer(saved: Any, running: State, name: str) -> None:
    groups, wanted = _groups(saved), _groups(running)
    if groups != wanted:
        raise InputError(
            f"{name} in state has the parameter groups {groups}; the running one has {wanted}. "
            "Make the same kind of optimizer over the same parameters."
        )
    entries = saved.get("state")
    if not isinstance(entries, dict):
        raise InputError(f"{name} in state has no entries for its parameters.")
    count = sum(size for size, _ in wanted or ())
    for key, entry in entries.items():
        if isinstance(key, int) and not (0 <= key < count and isinstance(entry, dict)):
            raise InputError(f"{name} in state has an entry for parameter {key} that is none.")


def _groups(state: Any) -> list[tuple[int, list[str]]] | None:
    """The size and the options of each parameter group; None where there are no such groups."""
    try:
        return [(len(group["params"]), sorted(group)) for group in state["param_groups"]]
    except (KeyError, TypeError):
        return None


def _check_scheduler(saved: Any, running: State | None, name: str) -> None:
    if (saved is None) != (running is None):
        raise InputError(f"{name} is in one of the running and the saved loop only.")
    if running is not None and (not isinstance(saved, dict) or saved.keys() != running.keys()):
        raise InputError(f"{name} in state is of another kind than the running one.")


def _check_adjoints(saved: Any, like: Tensor, size: int) -> None:
    wanted = f"a {like.dtype} tensor of shape {(size,)}"
    if not isinstance(saved, list):
        raise InputError(f"adjoints in state is a {type(saved).__name__}; wanted a list.")
    for index, found in enumerate(saved):
        if _kind(found) != wanted:
            raise InputError(f"adjoint {index} in state is {_kind(found)}; wanted {wanted}.")
        _check_finite(found, f"adjoint {index} in state")


def _check_finite(saved: Tensor, name: str) -> None:
    if not bool(saved.isfinite().all()):
        raise InputError(f"{name} holds a NaN or an infinity, from which no run can go on.")


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a {value.dtype} tensor of shape {tuple(value.shape)}"


def _is_dict_of_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values())
