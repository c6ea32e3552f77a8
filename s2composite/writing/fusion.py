"""Fusion: what only one window needs becomes part of the task that writes it, so that its pixels never travel.

Dask fuses chains only. The layers of a composite branch off one task and meet again where they are written; in between,
a scheduler may send every pixel to another worker, and it does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import dask
from dask._task_spec import Alias, GraphNode, Task

__all__ = ["fused"]

_Graph = Mapping[Any, GraphNode]
_Users = Mapping[Any, set[Any]]


def fused(graph: _Graph, heads: Iterable[Any], kept: Collection[Any]) -> _Graph:
    """Return a graph in which tasks contain the tasks that only they need, if these come from one task.

    Many tasks that meet in one (the partial sums of a mean) stay separate: they can run in parallel, and together might
    not fit into memory.

    Parameters
    ----------
    graph
        As `dask.array.optimize` returns it. Where Dask's own fusion is switched off, nothing is fused here either.
    heads
        Keys of the tasks that grow; those that are not in the graph are passed over.
    kept
        Keys whose results are wanted.
    """
    if dask.config.get("optimization.fuse.active") is False:
        return graph
    out, users = dict(graph), _users(graph)
    for head in heads:
        if head not in out:
            continue
        inner = [key for branch in _branches(out, _needed_by_it_alone(out, users, head, kept)) for key in branch]
        if inner:
            out[head] = out[head].fuse(*(out.pop(key) for key in inner), out[head], key=head)
    return out


def _users(graph: _Graph) -> _Users:
    users: dict[Any, set[Any]] = {}
    for key, node in graph.items():
        for needed in node.dependencies:
            users.setdefault(needed, set()).add(key)
    return users


def _needed_by_it_alone(graph: _Graph, users: _Users, head: Any, kept: Collection[Any]) -> set[Any]:
    """Return the tasks whose results only serve the task `head`."""
    inside, waiting = {head}, list(graph[head].dependencies)
    while waiting:
        key = waiting.pop()
        # Data that many tasks need, and results already on the cluster, are not tasks.
        if key not in inside and key not in kept and isinstance(graph.get(key), (Task, Alias)) and users[key] <= inside:
            inside.add(key)
            waiting.extend(graph[key].dependencies)
    return inside - {head}


def _branches(graph: _Graph, keys: set[Any]) -> list[set[Any]]:
    """Return for each branch of a tree its tasks from the last common source on."""
    return [part for branch in _connected(graph, keys) if (part := _from_one(graph, branch))]


def _connected(graph: _Graph, keys: set[Any]) -> list[set[Any]]:
    branches: list[set[Any]] = []
    for key in keys:
        near = {key} | (graph[key].dependencies & keys)
        touched = [branch for branch in branches if branch & near]
        branches = [branch for branch in branches if not branch & near] + [near.union(*touched)]
    return branches


def _from_one(graph: _Graph, branch: set[Any]) -> set[Any]:
    while len(first := {key for key in branch if not graph[key].dependencies & branch}) > 1:
        branch = branch - first
    return branch
