"""How much memory logits get."""

import pytest
import torch

from trainers.logits import SMALL, Room, divide, find_room

GIB = 1 << 30


def test_a_cpu_has_the_same_room_always():
    assert find_room(None, torch.device("cpu"), 10**9) == Room(GIB, 1 << 25)


@pytest.mark.parametrize(("asked", "chunk"), [(0, 1 << 25), (GIB, 1 << 25), (16 * GIB, 1 << 29)])
def test_what_is_asked_for_is_kept_and_chunks_grow_with_it(asked, chunk):
    assert find_room(asked, torch.device("cpu"), 1) == Room(asked, chunk)


def test_a_gpu_keeps_an_eighth_of_what_the_optimizer_leaves():
    room = divide(free_bytes=74 * GIB, total_bytes=80 * GIB, trained=3 * GIB)
    assert room == Room((74 - 3 * 18) * GIB // 8, 1 << 27)


def test_a_full_gpu_keeps_nothing_and_chunks_never_shrink_below_those_of_a_cpu():
    assert divide(free_bytes=GIB, total_bytes=16 * GIB, trained=GIB) == Room(0, SMALL.chunk_logits)


def test_chunks_of_a_gpu_do_not_depend_on_what_else_lies_there():
    rooms = [divide(free * GIB, 140 * GIB, 10**9) for free in (30, 139)]
    assert {room.chunk_logits for room in rooms} == {1 << 28}
    assert rooms[0].kept_bytes < rooms[1].kept_bytes
